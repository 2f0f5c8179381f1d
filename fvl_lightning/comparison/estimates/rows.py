"""The rows that a stage trains on: inspected where there are shards, else as long as the configuration allows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from datamodules.base import BatchData
from fvl_lightning.core.config.loading import config_hash
from fvl_lightning.core.errors import UserError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.terminal import plural
from fvl_lightning.doctor.shards import open_existing
from fvl_lightning.doctor.supervision import RowStatistics, inspect_rows
from fvl_lightning.evaluation.cost import mean_tiles
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration
from fvl_lightning.profiling.batch_shape import BatchShape, worst_batch
from fvl_lightning.runs.setup import data_context
from fvl_lightning.stages.base import Stage

ROWS_PER_COUNT = 4
"""Rows of a batch whose operations are counted; they grow with the number of rows."""


@dataclass(frozen=True)
class StageRows:
    """The rows of a stage."""

    tokens: int
    """Tokens of a row with its padding, on average."""
    images: float
    """Images of a row, on average."""
    supervised: int | None
    """Supervised tokens of a row; None for all but image tokens."""
    longest: BatchShape
    """The largest batch, of rows as long as the longest one that was inspected."""
    source: str
    """Where the numbers come from, for people."""
    image_tokens: int | None = None
    """Tokens of an image on average, where images become tiles and were inspected."""

    @property
    def counted(self) -> BatchShape:
        """The batch whose operations are counted."""
        images = max(1, round(ROWS_PER_COUNT * self.images)) if self.images else 0
        return BatchShape(ROWS_PER_COUNT, self.tokens, images, self.supervised)


def rows_of(stage: Stage, data: BatchData | None, row_tokens: int | None = None) -> StageRows:
    """Returns the rows of a stage.

    Args:
        stage: on the meta device.
        data: its data, where there are shards to inspect and the tokenizer is the model's own.
        row_tokens: tokens of a row, to be taken where nothing can be inspected; None for the most that are possible.
    """
    if data is not None:
        statistics = RowStatistics()
        try:
            data.connect(data_context(stage.model, stage.tokenizer, stage.experiment))
            inspect_rows(data, statistics)
        except UserError:
            pass  # the checks of the data report it
        if statistics.tokens:
            return _inspected(stage, statistics)
    worst = worst_batch(stage.experiment, stage.model)
    per_row = worst.images / worst.rows
    if row_tokens is not None and isinstance(stage.model, FlorenceVLForConditionalGeneration):
        least = stage.model.image_spec.tokens_per_image + 1
        tokens = min(worst.tokens, max(row_tokens, least))
        source = f"rows of {tokens:,} tokens, as --row-tokens asks for"
        return StageRows(tokens, per_row, None, worst, source)
    source = f"rows of {worst.tokens:,} tokens, the most that data.sequence_length allows (no shards to inspect)"
    return StageRows(worst.tokens, per_row, None, worst, source)


def _inspected(stage: Stage, statistics: RowStatistics) -> StageRows:
    config, worst = stage.experiment.data.config, worst_batch(stage.experiment, stage.model)
    source = f"{plural(len(statistics.tokens), 'row')} of the shards"
    image_tokens = round(fmean(statistics.image_tokens)) if statistics.image_tokens else None
    if config.layout == "packed":
        share = worst.tokens / sum(statistics.tokens)
        images = share * sum(statistics.images)
        supervised = round(share * sum(statistics.supervised))
        longest = BatchShape(worst.rows, worst.tokens, worst.rows * math.ceil(images))
        return StageRows(worst.tokens, images, supervised, longest, f"{source}, packed", image_tokens)
    rows = sorted(statistics.tokens) if config.layout == "grouped" else statistics.tokens
    tokens = min(worst.tokens, round(_padded(rows, stage.experiment.trainer.batch_size)))
    supervised = min(tokens, round(fmean(statistics.supervised)))
    tallest = min(worst.tokens, max(statistics.tokens))
    longest = BatchShape(worst.rows, tallest, worst.rows * max(statistics.images))
    return StageRows(tokens, fmean(statistics.images), supervised, longest, source, image_tokens)


def _padded(tokens: Sequence[int], rows: int) -> float:
    """Returns the mean length of rows that are padded to the longest of their batch."""
    return fmean(max(tokens[start : start + rows]) for start in range(0, len(tokens), rows))


@dataclass(frozen=True)
class SplitCounts:
    """Samples of the splits that a stage reads; None where they are not known."""

    validation: int | None
    images: int | None
    """Images of both training splits, or their tiles."""


class DataCache:
    """Opens the data of experiments that exist on the disk, once for each configuration; nothing is made."""

    def __init__(self) -> None:
        self._opened: dict[str, BatchData | None] = {}

    def of(self, experiment: ExperimentConfig) -> BatchData | None:
        """Returns the data of an experiment; None where shards or indexes are missing."""
        key = config_hash(experiment.data)
        if key not in self._opened:
            self._opened[key] = open_existing(experiment)
        return self._opened[key]


def split_counts(data: BatchData | None) -> SplitCounts:
    """Returns how much the splits of a stage hold; data whose images become tiles must be connected."""
    if data is None or data.STREAMS:
        return SplitCounts(None, None)
    stores: list[Any] = [data.store(split) for split in ("train", "validation")]
    images = sum(store.image_count(i) for store in stores for i in range(len(store)))
    if data.config.tiles is not None:
        images = round(images * mean_tiles(data))
    return SplitCounts(len(stores[1]), images)
