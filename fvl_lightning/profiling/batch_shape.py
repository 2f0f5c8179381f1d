"""The largest batch that an experiment allows, and its loss for a fake step."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.types import IGNORE_INDEX
from fvl_lightning.modeling.attention.kernels import document_inputs
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration


@dataclass(frozen=True)
class BatchShape:
    """The shape of one rank's batch: `rows` of `tokens`, including image tokens, with `images` or tiles in total.

    For encoder_pretrain `rows` are images, and `tokens` are those of each prompt's target.
    """

    rows: int
    tokens: int
    images: int
    supervised: int | None = None
    """Supervised tokens at the end of each row; None for all but image tokens."""


def worst_batch(experiment: ExperimentConfig, model: nn.Module, images_per_row: int | None = None) -> BatchShape:
    """Returns the largest batch that the experiment allows: every row has `data.sequence_length` tokens.

    Args:
        experiment: the experiment.
        model: its model.
        images_per_row: images, or their tiles, of a row; None for one image with as many tiles as it may have.
    """
    rows, tokens = experiment.trainer.batch_size, experiment.data.config.sequence_length
    if not isinstance(model, FlorenceVLForConditionalGeneration):
        encoder: Any = model.get_submodule("encoder")
        return BatchShape(rows, min(tokens, encoder.model_config.text_config.max_position_embeddings), rows)
    tiles = experiment.data.config.tiles
    if images_per_row is None:
        images_per_row = 1 if tiles is None else tiles.most
    fitting = max(1, (tokens - 1) // model.image_spec.tokens_per_image)
    return BatchShape(rows, tokens, rows * min(images_per_row, fitting))


def compute_loss(experiment: ExperimentConfig, model: nn.Module, shape: BatchShape) -> Tensor:
    """Returns the sum of the losses of a batch of this shape; pixels and features are zeros."""
    encoder: Any = model.get_submodule("encoder")
    dtype = next(encoder.parameters()).dtype
    pixels = torch.zeros(shape.images, 3, encoder.image_size, encoder.image_size, dtype=dtype)
    if not isinstance(model, FlorenceVLForConditionalGeneration):
        return model(pixels, torch.zeros(shape.images, len(encoder.tasks), shape.tokens, dtype=torch.long))[0]
    image = model.config.image_token_id
    token_ids = torch.full((shape.rows * shape.tokens,), int(image == 0))
    token_ids[: shape.images * model.image_spec.tokens_per_image] = image
    token_ids = token_ids.view(shape.tokens, shape.rows).T.contiguous()  # every row has its share of images
    labels = token_ids.masked_fill(token_ids == image, IGNORE_INDEX)
    if shape.supervised is not None:
        labels[:, : shape.tokens - shape.supervised] = IGNORE_INDEX
    images: dict[str, Any] = {"pixel_values": pixels}
    if experiment.feature_cache is not None:
        specs = encoder.specs.items()
        images = {"image_sources": {n: torch.zeros(shape.images, spec.tokens, spec.dim) for n, spec in specs}}
    if model.conditioned:
        images["question_ids"] = torch.zeros(shape.images, 1, dtype=torch.long)
    packed: dict[str, Any] = {}
    if experiment.data.config.layout == "packed":
        packed = _documents(shape)
    return model(token_ids, labels=labels, return_logits=False, **packed, **images).loss_sum


def _documents(shape: BatchShape) -> dict[str, Any]:
    """Returns positions and boundaries of rows of three documents, a half and two quarters of the row."""
    half, quarter = shape.tokens // 2, shape.tokens // 4
    lengths = [length for length in (half, quarter, shape.tokens - half - quarter) if length]
    positions = torch.cat([torch.arange(length) for length in lengths]).expand(shape.rows, -1).contiguous()
    boundaries = torch.tensor([0, *lengths * shape.rows]).cumsum(0).int()
    return {"position_ids": positions, **document_inputs(boundaries, max(lengths))}
