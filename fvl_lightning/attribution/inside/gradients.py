"""Gradients of the loss by source: how much each changes the loss on validation rows, to first order.

With x_k the features of source k behind the alignment, and g_k the gradient of the sum of the losses of all supervised
tokens with respect to them,

    gradient share           ||g_k|| / sum over j of ||g_j||, norms over all images, places and channels
    input x gradient share   sum |x_k * g_k| / sum over j of sum |x_j * g_j|
    first-order loss         -sum(x_k * g_k) per supervised token: how much the loss grows where the source is zero,
                             if it grew at the same rate all the way
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fvl_lightning.core.device import autocast
from fvl_lightning.core.types import Batch, PromptedBatch
from fvl_lightning.evaluation.statistics.resampling import Array, Estimate, Resamples, estimate, ratio
from fvl_lightning.modeling.attention.kernels import document_inputs
from fvl_lightning.modeling.connector.alignment import AlignedSources


@dataclass(frozen=True)
class SourceGradients:
    """Shares of the sources, each of which add up to 1; intervals are over new samples."""

    rows: int
    images: int
    tokens: int
    """Number of supervised tokens."""
    share: Mapping[str, Estimate]
    """{source: gradient share}."""
    input_share: Mapping[str, Estimate]
    """{source: input x gradient share}."""
    first_order: Mapping[str, Estimate]
    """{source: first-order loss when it is zero, in nats per supervised token}."""


def source_gradients(
    model: Any, batches: Iterable[Batch], precision: str = "32-true", seed: int = 0
) -> SourceGradients:
    """Returns the shares of the sources in the gradients on some batches; the encoder runs once over each image.

    Args:
        model: a model in eval mode, on the device on which it computes.
        batches: rows with images and supervised tokens, of one sample each.
        precision: a key of COMPUTE_PRECISIONS.
        seed: the seed of the bootstrap.
    """
    columns, clusters, tokens, rows = [], [], 0, 0
    for batch in batches:
        of_images, supervised = _batch_sums(model, batch.to(model.device), precision)
        per_row = (batch.token_ids == model.config.image_token_id).sum(1) // model.projector.tokens
        clusters += [key for key, count in zip(batch.keys, per_row.tolist(), strict=True) for _ in range(count)]
        columns.append(of_images)
        tokens, rows = tokens + supervised, rows + len(batch.keys)
    drawn = Resamples(clusters, seed=seed)
    table = np.concatenate(columns)  # [I, K, 4]: squares, absolute products, products, tokens
    sums = drawn.sums(drawn.totals(table)[:, 0])
    norms, products = np.sqrt(sums[..., 0]), sums[..., 1]

    def found(values: Array) -> dict[str, Estimate]:
        names = model.alignment.sources
        return {name: estimate(values[:, place], drawn.clusters) for place, name in enumerate(names)}

    return SourceGradients(
        rows,
        len(clusters),
        tokens,
        found(ratio(norms, norms.sum(1, keepdims=True))),
        found(ratio(products, products.sum(1, keepdims=True))),
        found(ratio(-sums[..., 2], sums[..., 3])),
    )


def _batch_sums(model: Any, batch: Batch, precision: str) -> tuple[Array, int]:
    """Returns the sums [I, K, 4] of each image and source, and the number of supervised tokens.

    They are sums of squares of gradients, of |x * g| and of x * g, and the image's part of the supervised tokens.
    """
    with torch.inference_mode(False), autocast(model.device, precision):
        with torch.no_grad():
            images = batch.images
            encoded = batch.features if images is None else model.encoder(images.to(model.dtype))
            aligned = model.alignment(encoded)
        leaves = {name: x.detach().clone().requires_grad_() for name, x in aligned.items()}
        with torch.enable_grad():
            output = model(
                batch.token_ids,
                image_sources=AlignedSources(leaves),
                question_ids=batch.questions,
                labels=batch.labels,
                position_ids=batch.positions,
                return_logits=False,
                **document_inputs(batch.boundaries, batch.longest),
            )
            gradients = torch.autograd.grad(output.loss_sum, list(leaves.values()), allow_unused=True)
    pairs = [(x.detach(), x * 0 if g is None else g) for x, g in zip(leaves.values(), gradients, strict=True)]
    sums = torch.stack([_sums(x.detach(), g.detach()) for x, g in pairs], dim=1).cpu().numpy()
    share = float(output.tokens) / len(sums)
    return np.concatenate([sums, np.full((*sums.shape[:2], 1), share)], axis=-1), int(output.tokens)


def _sums(x: Tensor, gradient: Tensor) -> Tensor:
    """Returns [I, 3] of features and gradients [I, N, D]: squares, |x * g| and x * g, each summed."""
    product = (x.float() * gradient.float()).flatten(1)
    return torch.stack([gradient.float().flatten(1).square().sum(1), product.abs().sum(1), product.sum(1)], dim=1)


def first_rows(batches: Iterable[Batch | PromptedBatch], rows: int) -> Iterable[Batch]:
    """Yields batches with images until there are at least this many rows; batches without images are passed over."""
    for batch in batches:
        if rows <= 0:
            return
        if isinstance(batch, Batch) and batch.has_images:
            yield batch
            rows -= len(batch.keys)
