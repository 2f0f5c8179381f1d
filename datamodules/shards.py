"""Training data from your own WebDataset shards: one dataset, or a mixture of several."""

from dataclasses import dataclass, field
from typing import Literal

from datamodules.base import BatchData, SplitDataset
from datamodules.batching.config import BatchConfig
from datamodules.storage.remote import is_remote
from datamodules.storage.shard_cache import default_cache
from datamodules.storage.shard_paths import TO_VALIDATE_ON, expand_shards, split_shards
from fvl_lightning.core.config.field_types import PathText
from fvl_lightning.core.config.fields import number
from fvl_lightning.core.errors import ConfigError, DataError, unknown_name
from fvl_lightning.core.registry import register


@dataclass
class DatasetConfig:
    """One dataset of a mixture."""

    root: PathText = ""
    """Folder or URL with train-000000.tar, validation-000000.tar and so on."""
    shards: dict[str, list[PathText]] = field(default_factory=dict)
    """Instead of `root`: the shards of each split, as folders, globs, {000000..000999}.tar or URLs."""
    view: Literal["conversation", "caption"] | None = None
    """What its samples are; null for `data.view`."""
    share: float | None = number(None, above=0)
    """Its share of the training samples, in any unit; null for all datasets: in proportion to their sizes."""


@register("data", "shards")
class ShardsData(BatchData):
    """Batches from `<root>/<split>-*.tar`, splits train and validation; datamodules/README.md has the format."""

    @dataclass
    class Config(BatchConfig):
        """The shards, and how their samples are used."""

        root: PathText = ""
        """Folder or URL (s3://, gs://, https://) with train-000000.tar, validation-000000.tar and so on."""
        shards: dict[str, list[PathText]] = field(default_factory=dict)
        """Instead of `root`: the shards of each split, as folders, globs, {000000..000999}.tar or URLs."""
        datasets: dict[str, DatasetConfig] = field(default_factory=dict)
        """Instead of both: several datasets, mixed by their shares. Some of them may lack a split."""
        cache_gigabytes: float = number(50.0, above=0)
        """Size of the cache for remote shards in ~/.cache/fvl_lightning; the least recently used are removed first.
        Shuffling extends over as many shards as fit into half of it."""

        def __post_init__(self) -> None:
            super().__post_init__()
            given = [name for name in ("root", "shards", "datasets") if vars(self)[name]]
            if len(given) > 1:
                raise ValueError(f"{' and '.join(given)} are given, one of root, shards and datasets says where")
            shares = [dataset.share for dataset in self.datasets.values()]
            if None in shares and any(share is not None for share in shares):
                raise ValueError("datasets: a share is given for some of them, give one for all or for none")
            if self.datasets and self.view == "tasks":
                raise ValueError("datasets: the view tasks takes one data set, not a mixture")

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self._split_datasets: dict[str, list[SplitDataset]] = {}
        datasets = list(config.datasets.values()) or [DatasetConfig(config.root, config.shards)]
        self._datasets = dict(zip(config.datasets or [""], datasets, strict=True))
        addresses = [
            address
            for dataset in datasets
            for address in [dataset.root, *(one for several in dataset.shards.values() for one in several)]
        ]
        if any(is_remote(address) for address in addresses):
            self.cache = default_cache(config.cache_gigabytes)

    def datasets(self, split: str) -> list[SplitDataset]:
        """Returns the datasets that have this split; DataError if none has."""
        if split not in self._split_datasets:
            found: list[SplitDataset] = []
            for name, dataset in self._datasets.items():
                shards = self._shards(name, dataset, split)
                if shards:
                    found.append(SplitDataset(name, shards, dataset.view or self.config.view, dataset.share))
            if not found:
                advice = f"; {TO_VALIDATE_ON}" if split == "validation" else ""
                raise DataError(f"data.datasets: none of {', '.join(self._datasets)} has the split {split}{advice}")
            self._split_datasets[split] = found
        return self._split_datasets[split]

    def _shards(self, name: str, dataset: DatasetConfig, split: str) -> list[str]:
        """Returns the shards of one split; none if it is one of several datasets and has no such split."""
        where = f"data.datasets.{name}" if name else "data"
        if dataset.shards:
            if split in dataset.shards:
                return expand_shards(dataset.shards[split])
            if name:
                return []
            raise unknown_name("split", split, dataset.shards, f"{where}.shards")
        if not dataset.root:
            raise ConfigError(f"{where}: root or shards must say where the shards are")
        try:
            return split_shards(dataset.root, split)
        except DataError:
            if name and split != "train":
                return []
            raise
