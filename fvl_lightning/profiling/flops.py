"""Floating-point operations of a model: counted while it runs, or on shapes alone.

estimate_flops(experiment, stage.model, stage.trainable, BatchShape(rows=1, tokens=700, images=1)).training
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fvl_lightning.core.device import release_memory
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.profiling.batch_shape import BatchShape, compute_loss
from fvl_lightning.profiling.fake_step import fake_tensors, recompute_activations, without_values
from fvl_lightning.training.components import blocks, set_modes
from fvl_lightning.training.stage_interface import StageInterface


@dataclass(frozen=True)
class BatchFlops:
    """Operations of one batch, two per multiply-add."""

    forward: int
    training: int
    """Forward and backward pass, as `training_flops` counts them."""
    executed: int
    """The same with the forward passes that `trainer.checkpoint_activations` repeats."""


def count_flops(work: Callable[[], Any]) -> int:
    """Returns the operations of matrix products, convolutions and attention in `work`, two per multiply-add.

    Attention counts as its matrix products, including masked positions, since the counter does not know the fused
    kernels of a CPU.
    """
    with sdpa_kernel(SDPBackend.MATH), _counter() as counter:
        work()
    return counter.get_total_flops()


def _counter() -> FlopCounterMode:
    """Returns a counter of all operations together.

    By module it would set hooks on inputs, which fail without gradients for a view of a parameter, such as queries.
    """
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _WholeModel()  # type: ignore[assignment]
    return counter


class _WholeModel(AbstractContextManager[None]):
    """The modules that the counter asks for: every operation belongs to the whole."""

    parents = frozenset({"Global"})

    def __exit__(self, *_: object) -> None:
        """Has nothing to undo."""


def training_flops(stage: StageInterface, batch: Any) -> int:
    """Returns the operations of the forward and backward pass of a batch; leaves the stage in train mode.

    A batch that the device's memory does not hold, since nothing is recomputed here, is counted on its shapes.
    """
    stage.train()
    try:
        return count_flops(lambda: stage.compute(batch)[0].sum.backward())
    except torch.OutOfMemoryError:
        stage.zero_grad()
    release_memory()
    shapes = batch.to("cpu")
    with fake_tensors(), without_values(stage):
        return count_flops(lambda: stage.compute(shapes)[0].sum.backward())


def estimate_flops(
    experiment: ExperimentConfig, model: nn.Module, trainable: Mapping[str, str], shape: BatchShape
) -> BatchFlops:
    """Counts the operations of a batch by its shape; the model may be on the meta device and keeps its values.

    With `feature_cache` the encoder does not run. Operations of the optimiser, which grow with the parameters and not
    with the batch, are left out.
    """
    set_modes(model, trainable)
    repeated = [block for name in experiment.trainer.checkpoint_activations for block in blocks(model, name)]
    with fake_tensors(), without_values(model):
        forward, training = _count_passes(experiment, model, shape)
        executed = training
        if repeated:
            with recompute_activations(repeated, experiment.trainer.checkpoint_keep):
                _, executed = _count_passes(experiment, model, shape)
    return BatchFlops(forward, training, executed)


def encoder_flops(model: nn.Module) -> int:
    """Returns the operations of the encoder's forward pass for one image."""
    encoder: Any = model.get_submodule("encoder")
    with fake_tensors(), without_values(model), torch.no_grad():
        pixels = torch.empty(1, 3, encoder.image_size, encoder.image_size, dtype=next(encoder.parameters()).dtype)
        return count_flops(lambda: encoder(pixels))


def question_flops(model: nn.Module, text_tokens: int, tiles: int = 1) -> int:
    """Returns the operations of an image and a question up to the first token of the answer.

    Args:
        model: a whole model, on any device.
        text_tokens: tokens of the prompt besides those of the image.
        tiles: tiles of the image.
    """
    whole: Any = model
    encoder, image = whole.encoder, whole.config.image_token_id
    placeholders = tiles * whole.image_spec.tokens_per_image
    token_ids = torch.full((1, placeholders + text_tokens), image)
    token_ids[:, placeholders:] = int(image == 0)
    mask = torch.ones_like(token_ids)
    with fake_tensors(), without_values(model), torch.no_grad():
        pixels = torch.empty(tiles, 3, encoder.image_size, encoder.image_size, dtype=next(encoder.parameters()).dtype)
        asked = {"question_ids": torch.zeros(tiles, 1, dtype=torch.long)} if whole.conditioned else {}
        return count_flops(lambda: whole(token_ids, pixels, mask, logits_to_keep=1, **asked))


def _count_passes(experiment: ExperimentConfig, model: nn.Module, shape: BatchShape) -> tuple[int, int]:
    """Returns the operations of the forward pass, and those of forward and backward pass."""
    with torch.no_grad():  # with gradients the loss computes those of the head in the forward pass
        forward = count_flops(lambda: compute_loss(experiment, model, shape))
    return forward, count_flops(lambda: compute_loss(experiment, model, shape).backward())
