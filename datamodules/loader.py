"""Rows of the order to batches: read, encode, pad; bad samples are dropped, counted and, past a limit, an error."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.order import Rows
from datamodules.pixels import to_pixels
from datamodules.store import SampleError, SampleStore
from datamodules.views import Encoded, View
from fvl_lightning.core.errors import DataError, UserError
from fvl_lightning.core.types import IGNORE_INDEX, Batch, DataContext, PromptedBatch

log = logging.getLogger(__name__)

FeatureLookup = Callable[[str, int], dict[str, Tensor]]
"""(split, sample number) -> {source: [I_sample, N, D]}: a frozen encoder's features of that sample's images."""

PATIENCE = 100
"""Samples seen before the fraction of bad ones is held against the limit; and how far a batch of none is refilled."""


@dataclass
class Loaded:
    """What comes of one batch's rows: the batch, or the error that ends the run, and the samples left out."""

    batch: Batch | PromptedBatch | None
    seen: int
    bad: list[SampleError] = field(default_factory=list)
    truncated: list[str] = field(default_factory=list)
    error: UserError | None = None


@dataclass
class Tally:
    """Samples seen, dropped by reason, and shortened to fit, since the loader was made."""

    seen: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    truncated: int = 0


class BatchDataset(Dataset[Loaded]):
    """Rows -> Loaded, a pure function of the rows, so that it does not matter which worker runs it."""

    def __init__(self, store: SampleStore, view: View, context: DataContext, lookup: FeatureLookup | None) -> None:
        self.store, self.view, self.context, self.lookup = store, view, context, lookup

    def __getitem__(self, rows: Rows) -> Loaded:
        """Reads the rows' samples; a batch left with none takes the first good sample that follows in the store."""
        loaded = Loaded(None, 0)
        good: list[tuple[int, Encoded, list[Tensor] | dict[str, Tensor]]] = []
        try:
            for i in rows.indices:
                self._read(i, good, loaded)
            for step in range(1, PATIENCE + 1):
                if good:
                    break
                self._read((rows.indices[-1] + step) % len(self.store), good, loaded)
        except UserError as error:
            # As a value: torch would turn an exception raised in a worker into pages of traceback.
            loaded.error = error
            return loaded
        raise NotImplementedError
