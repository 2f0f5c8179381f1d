"""Training data read as a stream of WebDataset shards, for sets too large or too remote to index."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from datamodules.encoding.questions import Question, list_questions
from datamodules.shards import ShardsData
from datamodules.storage.content_hash import content_hash
from datamodules.storage.remote import is_remote
from datamodules.storage.sample import spread
from datamodules.storage.sample_store import SampleStore
from datamodules.streaming.dataset_stream import StreamedSet
from datamodules.streaming.loader import StreamDataset, StreamLoader
from datamodules.streaming.shard_order import ShardOrder, SplitByRank
from fvl_lightning.core.config.fields import number
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.registry import register

PRIOR_SHARDS = 4
"""Shards of each data set whose answers stand for those of the whole split train."""


@register("data", "webdataset")
class WebDatasetData(ShardsData):
    """Batches from a stream of `<root>/<split>-*.tar`: train is read on from shard to shard and never indexed.

    Validation and test splits are indexed, as by `shards`: they must be complete, and scoring asks for single samples.
    """

    @dataclass
    class Config(ShardsData.Config):
        """The shards, and how their samples are used. Batches depend on the number of workers."""

        workers: int = number(0, at_least=0, changes="nothing")
        """Processes that read, each its own shards; 0 reads in the training process. The order depends on it."""
        shuffle_buffer: int = number(1000, at_least=1)
        """Samples that each reader holds in memory, encoded, of each data set, and shuffles together."""
        cache_gigabytes: float = number(50.0, above=0)
        """Size of the cache for remote validation and test shards in ~/.cache/fvl_lightning; train is not copied."""

    config: Config
    STREAMS = True

    def prepare_data(self) -> None:
        """Finds the shards of train and indexes those of validation; DataError where one split has none."""
        self.datasets("train")
        self.store("validation")

    def train_dataloader(self) -> StreamLoader:
        """Returns endless batches from the context's position on; docs/data.md states what a resume promises."""
        context, config, datasets = self.context, self.config, self.datasets("train")
        start = context.position if isinstance(context.position, tuple) else (0,) * len(datasets)
        if len(start) != len(datasets):
            raise DataError(f"the position to resume from is that of {len(start)} data sets, there are {len(datasets)}")
        ranks = SplitByRank(context.rank, context.world_size)
        sets = [
            StreamedSet(
                ShardOrder(dataset.shards, context.seed, dataset.name, first),
                ranks,
                config.shuffle_buffer,
                self.reader.read,
            )
            for dataset, first in zip(datasets, start, strict=True)
        ]
        dataset = StreamDataset(
            sets,
            [len(dataset.shards) if dataset.share is None else dataset.share for dataset in datasets],
            [self.view(dataset.view) for dataset in datasets],
            config.layout,
            config.view != "tasks" and (config.over_long == "split" or config.by_turn or self.context.conditioned),
            config.sequence_length,
            context.batch_size,
            self._collate(datasets, config.layout == "packed"),
        )
        return StreamLoader(dataset, start, config.workers, config.max_bad_fraction)

    def questions(self, split: str) -> list[Question]:
        """As of BatchData; those of train are of a few shards of each data set, which are indexed for it."""
        if split != "train":
            return super().questions(split)
        some = [
            [dataset.shards[k] for k in spread(len(dataset.shards), PRIOR_SHARDS)] for dataset in self.datasets(split)
        ]
        return [question for shards in some for question in list_questions(SampleStore(shards, split, self.cache))]

    def split_hash(self, split: str, content: bool = False) -> str:
        """As of BatchData; the name of train depends on the names of its shards, and on the bytes of local ones."""
        if split != "train":
            return super().split_hash(split, content)
        shards = [shard for dataset in self.datasets(split) for shard in dataset.shards]
        local = [shard for shard in shards if not is_remote(shard)]
        sizes = [Path(shard).stat().st_size for shard in local]
        names = "\n".join([*shards, *map(str, sizes)])
        found = content_hash(local, sizes) if content and local else ""
        return hashlib.sha256(f"{names} {found}".encode()).hexdigest()
