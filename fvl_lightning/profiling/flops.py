"""Floating-point operations of a model, counted while it runs."""

from collections.abc import Callable
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fvl_lightning.training.stage_interface import StageInterface


def count_flops(work: Callable[[], Any]) -> int:
    """Returns the operations of matrix products, convolutions and attention in `work`, two per multiply-add.

    Attention counts as its matrix products, including masked positions, since the counter does not know the fused
    kernels of a CPU.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def training_flops(stage: StageInterface, batch: Any) -> int:
    """Returns the operations of the forward and backward pass of a batch; leaves the stage in train mode."""
    stage.train()
    return count_flops(lambda: stage.compute(batch)[0].sum.backward())
