"""A vector per image and per caption: the mean over tokens, of length 1.

The vector of an image is the mean of what enters the language model; that of a caption is the mean of the language
model's last hidden states over the caption and its end token, for a row without the images.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fvl_lightning.core.types import IGNORE_INDEX


class PairVectors(NamedTuple):
    """The vectors of M rows that have an image and a caption.

    Attributes:
        images: [M, D] of length 1, float32 at least; the mean over all images, or tiles, of a row.
        captions: [M, D] of length 1.
        rows: [M], the numbers of these rows in the batch.
    """

    images: Tensor
    captions: Tensor
    rows: Tensor


def pair_vectors(
    model: Any,
    token_ids: Tensor,
    labels: Tensor,
    pixels: Tensor | None = None,
    sources: dict[str, Tensor] | None = None,
    question_ids: Tensor | None = None,
) -> PairVectors:
    """Returns the vectors of the images and captions of rows of one sample each.

    Args:
        model: a FlorenceVLForConditionalGeneration.
        token_ids: [B, S] with `config.image_token_id` once per image token, padded at the end.
        labels: [B, S], IGNORE_INDEX outside of captions.
        pixels: [I, 3, P, P] in the order of the placeholders, or None.
        sources: the encoder's output {source: [I, N_source, D_source]}, in place of `pixels`.
        question_ids: [I, L], for a conditioned fusion.

    Raises:
        ValueError: the placeholders are not those of I images.
    """
    is_image = token_ids == model.config.image_token_id
    features = model.embed_images(pixels, sources, question_ids).features
    images = is_image.sum(1) // features.shape[1]
    if int(is_image.sum()) != features.shape[0] * features.shape[1]:
        raise ValueError(f"{int(is_image.sum())} image placeholders for {len(features)} images in the batch")
    row_of_image = torch.arange(len(token_ids), device=images.device).repeat_interleave(images)
    means = _in_float(features).mean(1)
    sums = means.new_zeros(len(token_ids), means.shape[1]).index_add(0, row_of_image.to(means.device), means)
    rows = ((images > 0) & (labels != IGNORE_INDEX).any(1)).nonzero().squeeze(1)
    captions = caption_means(model, token_ids, labels)
    return PairVectors(normalize(sums[rows], dim=-1), normalize(captions[rows], dim=-1), rows)


def caption_means(model: Any, token_ids: Tensor, labels: Tensor) -> Tensor:
    """Returns the mean hidden states [B, D] of the supervised tokens of rows [B, S] that are read without images."""
    ids, supervised = caption_rows(token_ids, labels, model.config.image_token_id)
    hidden = _in_float(model.run(ids, use_cache=False)[0].last_hidden_state)
    weights = supervised.to(hidden.device, hidden.dtype).unsqueeze(-1)  # no matrix product, which autocast would round
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


def caption_rows(token_ids: Tensor, labels: Tensor, image_token_id: int) -> tuple[Tensor, Tensor]:
    """Returns rows [B, L] without image placeholders and what follows the caption, and which tokens are supervised."""
    supervised = labels != IGNORE_INDEX
    before_end = supervised.flip(1).cumsum(1).flip(1) > 0
    kept = before_end & (token_ids != image_token_id)
    order = (~kept).long().argsort(dim=1, stable=True)[:, : max(1, int(kept.sum(1).max()))]
    padding = int(image_token_id == 0)  # any token but the placeholder; a causal model does not see it
    ids = token_ids.masked_fill(~kept, padding).gather(1, order)
    return ids, (supervised & kept).gather(1, order)


def caption_numbers(token_ids: Tensor, labels: Tensor, rows: Tensor) -> list[int]:
    """Returns a number for the caption of each of these rows of [B, S], the same for equal ones in every process."""
    return [hash(tuple(token_ids[row][labels[row] != IGNORE_INDEX].tolist())) for row in rows.tolist()]


def _in_float(values: Tensor) -> Tensor:
    """Returns values in float32, or in float64 if they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
