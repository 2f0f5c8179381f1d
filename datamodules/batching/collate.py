"""Collates samples into batches: padded or packed rows, and images in the encoder's format."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.batching.rows import Rows
from datamodules.encoding.views import Encoded
from datamodules.images.transforms import Fit, to_bytes, to_pixels
from fvl_lightning.core.types import IGNORE_INDEX, NO_TOKEN, Batch, DataContext, PromptedBatch


@dataclass
class EncodedSample:
    """One encoded piece; it has `features` instead of `images` where they were computed before."""

    key: str
    dataset: int
    encoded: Encoded
    images: list[NDArray[np.uint8]] = field(default_factory=list)
    features: dict[str, Tensor] = field(default_factory=dict)


STEP_OF_LONGEST = 128
"""The length of the longest document is rounded up to a multiple of it. It goes into compiled code, which is compiled
again for other numbers, and kernels go through documents in blocks of as many tokens."""

Collate = Callable[[list[list[EncodedSample]], Rows], Batch | PromptedBatch]
"""(the samples of each row, the rows) -> batch"""


def row_collate(context: DataContext, with_features: bool, packed: bool, datasets: Sequence[str], fit: Fit) -> Collate:
    """Returns a function that collates samples into a Batch, padded on the right to the longest row.

    Args:
        context: the model's image format and tokenizer.
        with_features: whether samples have features instead of images.
        packed: whether rows hold several samples, so that the batch needs positions.
        datasets: the names of the datasets of a mixture; none for a single one.
        fit: how an image is made square.
    """
    tokenizer = context.tokenizer
    # Padding is neither supervised nor attended to, so any id serves where there is no pad token.
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    def collate(rows: list[list[EncodedSample]], planned: Rows) -> Batch:
        samples = [sample for row in rows for sample in row]
        features = None
        if with_features:
            sources = samples[0].features
            features = {source: torch.cat([sample.features[source] for sample in samples]) for source in sources}
        examples = [[sample.encoded.rows[0] for sample in row] for row in rows]
        ids = [[ids for ids, _ in row] for row in examples]
        boundaries, longest = _boundaries(ids) if packed else (None, 0)
        labels = [[labels for _, labels in row] for row in examples]
        numbers = [[[sample.dataset] * len(sample.encoded.rows[0][0]) for sample in row] for row in rows]
        return Batch(
            token_ids=_laid_out(ids, pad),
            labels=_laid_out(labels, IGNORE_INDEX, planned.supervised),
            images=None if with_features else _pixels(samples, context, fit),
            features=features,
            keys=tuple(sample.key for sample in samples),
            position=planned.position,
            positions=_positions(ids) if packed else None,
            boundaries=boundaries,
            longest=longest,
            dataset_ids=_laid_out(numbers, 0) if datasets else None,
            datasets=tuple(datasets),
            questions=_questions(samples) if context.conditioned else None,
            pixel_spec=context.image if context.byte_images and not with_features else None,
        )

    return collate


def prompted_collate(context: DataContext, fit: Fit) -> Collate:
    """Returns a function that collates samples, one per row, into a PromptedBatch with targets [I, T, L]."""

    def collate(rows: list[list[EncodedSample]], planned: Rows) -> PromptedBatch:
        samples = [sample for row in rows for sample in row]
        targets = [[ids] for sample in samples for ids, _ in sample.encoded.rows]
        padded = _laid_out(targets, IGNORE_INDEX, planned.supervised)
        return PromptedBatch(
            images=_pixels(samples, context, fit),
            targets=padded.view(len(samples), len(context.tasks), -1),
            keys=tuple(sample.key for sample in samples),
            position=planned.position,
            pixel_spec=context.image if context.byte_images else None,
        )

    return collate


def _pixels(samples: list[EncodedSample], context: DataContext, fit: Fit) -> Tensor:
    convert = to_bytes if context.byte_images else to_pixels
    return convert([image for sample in samples for image in sample.images], context.image, fit)


def pad_questions(questions: Sequence[Sequence[int]]) -> Tensor:
    """Returns the token ids of the question about each image [I, L] int64, NO_TOKEN after each."""
    laid = np.full((len(questions), max(map(len, questions), default=0) or 1), NO_TOKEN, dtype=np.int64)
    for row, question in zip(laid, questions, strict=True):
        row[: len(question)] = question
    return torch.from_numpy(laid)


def _questions(samples: list[EncodedSample]) -> Tensor:
    """Returns the questions about the images of samples; all images of a sample have its question."""
    counts = [len(next(iter(sample.features.values()), sample.images)) for sample in samples]
    rows = [sample.encoded.question for sample, count in zip(samples, counts, strict=True) for _ in range(count)]
    return pad_questions(rows)


def _laid_out(rows: list[list[list[int]]], value: int, keep: bool = True) -> Tensor:
    """Concatenates the runs of every row and pads with `value` to [B, S] int64; only `value` where not `keep`."""
    lengths = [sum(map(len, row)) for row in rows]
    laid = np.full((len(rows), max(lengths)), value, dtype=np.int64)
    if keep:
        for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            laid[number, :length] = np.concatenate([np.asarray(run, dtype=np.int64) for run in row])
    return torch.from_numpy(laid)


def _positions(rows: list[list[list[int]]]) -> Tensor:
    """Returns positions [B, S] int64 that restart at 0 in every run; padding has position 0.

    Counting on would give padding the largest positions of the row, from which some models derive their rotary
    frequencies.
    """
    longest = max(sum(map(len, row)) for row in rows)
    laid = np.zeros((len(rows), longest), dtype=np.int64)
    for number, row in enumerate(rows):
        counted = np.concatenate([np.arange(len(run)) for run in row])
        laid[number, : len(counted)] = counted
    return torch.from_numpy(laid)


def _boundaries(rows: list[list[list[int]]]) -> tuple[Tensor, int]:
    """Returns the boundaries of runs [runs + 1] int32 in the flattened rows, and an upper bound on their lengths.

    Padding is cut into runs that are not longer than the others, so that attention over it costs no more.
    """
    lengths = [[len(run) for run in row] for row in rows]
    width, longest = max(map(sum, lengths)), max(map(max, lengths))
    runs = [0]
    for row in lengths:
        whole, rest = divmod(width - sum(row), longest)
        runs += [*row, *[longest] * whole, *([rest] if rest else [])]
    rounded = -(-longest // STEP_OF_LONGEST) * STEP_OF_LONGEST
    return torch.from_numpy(np.cumsum(runs, dtype=np.int32)), rounded
