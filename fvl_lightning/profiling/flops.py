"""Floating-point operations, counted while the real model works."""

from collections.abc import Callable
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_flops(work: Callable[[], Any]) -> int:
    """Operations of the matrix products, convolutions and attention that `work` makes, two per multiply-add.

    Attention is counted as the matrix products it stands for, masked places included: the fused kernels of a CPU are
    none that the counter knows.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def training_flops(stage: Any, batch: Any) -> int:
    """Operations of a batch in training, forwards and backwards; the stage is left in train mode."""
    stage.train()
    return count_flops(lambda: stage.compute(batch)[0].sum.backward())
