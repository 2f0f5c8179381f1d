"""Samples to batches: rows laid out, packed or padded, and images as the encoder wants them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.batching.rows import Rows
from datamodules.encoding.views import Encoded
from datamodules.images.transforms import Fit, to_pixels
from fvl_lightning.core.types import IGNORE_INDEX, Batch, DataContext, PromptedBatch


@dataclass
class EncodedSample:
    """One piece before it is laid out; `features` instead of `images` where they were computed before."""

    key: str
    dataset: int
    encoded: Encoded
    images: list[NDArray[np.uint8]] = field(default_factory=list)
    features: dict[str, Tensor] = field(default_factory=dict)


Collate = Callable[[list[list[EncodedSample]], Rows], Batch | PromptedBatch]
"""(the samples of each row, the rows) -> batch"""


def row_collate(
    context: DataContext, with_features: bool, packed: bool, datasets: Sequence[str], fit: Fit
) -> Collate:
    """Samples -> Batch, filled up on the right to the longest row.

    Args:
        packed: rows hold several samples, so positions say where each begins.
        datasets: the names of the data sets of a mixture; none for a single one.
    """
    tokenizer = context.tokenizer
    # Behind the last token nothing is supervised and nothing attends, so any id pads where there is no pad token.
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    def collate(rows: list[list[EncodedSample]], planned: Rows) -> Batch:
        samples = [sample for row in rows for sample in row]
        features = None
        if with_features:
            sources = samples[0].features
            features = {source: torch.cat([sample.features[source] for sample in samples]) for source in sources}
        examples = [[sample.encoded.rows[0] for sample in row] for row in rows]
        ids = [[ids for ids, _ in row] for row in examples]
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
            dataset_ids=_laid_out(numbers, 0) if datasets else None,
            datasets=tuple(datasets),
        )

    return collate


def prompted_collate(context: DataContext, fit: Fit) -> Collate:
    """Samples, one a row -> PromptedBatch, targets [I, T, L] padded with IGNORE_INDEX."""

    def collate(rows: list[list[EncodedSample]], planned: Rows) -> PromptedBatch:
        samples = [sample for row in rows for sample in row]
        targets = [[ids] for sample in samples for ids, _ in sample.encoded.rows]
        padded = _laid_out(targets, IGNORE_INDEX, planned.supervised)
        return PromptedBatch(
            images=_pixels(samples, context, fit),
            targets=padded.view(len(samples), len(context.tasks), -1),
            keys=tuple(sample.key for sample in samples),
            position=planned.position,
        )

    return collate


def _pixels(samples: list[EncodedSample], context: DataContext, fit: Fit) -> Tensor:
    return to_pixels([image for sample in samples for image in sample.images], context.image, fit)


def _laid_out(rows: list[list[list[int]]], value: int, keep: bool = True) -> Tensor:
    """The runs of every row one after the other [B, S] int64, then `value`; nothing but `value` where not `keep`."""
    lengths = [sum(map(len, row)) for row in rows]
    laid = np.full((len(rows), max(lengths)), value, dtype=np.int64)
    if keep:
        for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            laid[number, :length] = np.concatenate([np.asarray(run, dtype=np.int64) for run in row])
    return torch.from_numpy(laid)


def _positions(rows: list[list[list[int]]]) -> Tensor:
    """[B, S] int64, from 0 on in every run; 0 in what fills the row up.

    Counted up they would be the largest positions of the row, by which some models choose their frequencies.
    """
    longest = max(sum(map(len, row)) for row in rows)
    laid = np.zeros((len(rows), longest), dtype=np.int64)
    for number, row in enumerate(rows):
        counted = np.concatenate([np.arange(len(run)) for run in row])
        laid[number, : len(counted)] = counted
    return torch.from_numpy(laid)
