"""The base of all data modules: from the shards of one or several datasets to batches."""

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import ClassVar

import numpy as np
from lightning import LightningDataModule
from torch import Tensor

from datamodules.batching.collate import Collate, prompted_collate, row_collate
from datamodules.batching.config import BatchConfig
from datamodules.batching.lengths import concatenate, log_counts, measure_items
from datamodules.batching.loader import (
    MIN_SAMPLES_JUDGED,
    BatchDataset,
    BatchLoader,
    CountingLoader,
    FeatureLookup,
    FiniteBatchLoader,
)
from datamodules.batching.mixture_order import GlobalOrder
from datamodules.batching.rows import RowOrder, TrainRows, ValidationRows, single_rows
from datamodules.batching.text_views import conversation_encoder, text_view
from datamodules.encoding.conversation import ConversationEncoder
from datamodules.encoding.items import Items
from datamodules.encoding.messages import Message, with_sizes
from datamodules.encoding.question_form import QuestionForm
from datamodules.encoding.questions import Question, list_questions
from datamodules.encoding.views import TasksView, TextView, View
from datamodules.images.decoding import decode_image
from datamodules.images.tile_reader import TileReader
from datamodules.images.tiling import Tiling
from datamodules.images.transforms import ImageReader
from datamodules.storage.remote import is_remote
from datamodules.storage.sample_store import SampleStore
from datamodules.storage.shard_cache import ShardCache
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.types import DataContext, Position, PromptedBatch

TRAINING_SPLITS = ("train", "validation")


@dataclass(frozen=True)
class SplitDataset:
    """One dataset of a split: its name ("" if it is the only one), shards, view, and share of a mixture."""

    name: str
    shards: Sequence[str]
    view: str
    share: float | None = None


class BatchData(LightningDataModule):
    """Batches of shards, splits train and validation.

    Call prepare_data() first, which needs no model; then connect(context); then the loaders.
    """

    config: BatchConfig
    cache: ShardCache | None = None
    """Where copies of remote shards are kept."""
    asking: QuestionForm | None = None
    """The form that `questions` have, for a model that was trained on other data; None for their own."""
    STREAMS: ClassVar[bool] = False
    """Whether the split train is read as a stream, without random access by sample number."""
    levels: ClassVar[tuple[str, ...]] = ()
    """Levels of difficulty, which the field `level` of Config takes; a model may be scored on another than its own."""

    def __init__(self) -> None:
        super().__init__()
        self._context: DataContext | None = None
        self._lookup: FeatureLookup | None = None
        self._stores: dict[str, SampleStore] = {}
        self._items: dict[str, Items] = {}

    @abstractmethod
    def datasets(self, split: str) -> list[SplitDataset]:
        """Returns the datasets of a split; DataError if there is none."""

    def prepare_data(self) -> None:
        """Indexes shards that have no index yet; raises DataError if train or validation is missing or broken."""
        for split in TRAINING_SPLITS:
            self.store(split)

    def prepare_split(self, split: str) -> None:
        """Makes one split readable, without checking the others; DataError if it is missing or broken."""
        self.store(split)

    def prepare_tokenizer(self) -> None:
        """Makes the tokenizer that comes with the data, where there is one; draws and reads no samples."""

    def connect(self, context: DataContext) -> None:
        """Sets the context of the batches: image size, tokenizer, batch size, seed, position, rank."""
        self._context = context
        self._items.clear()
        self.__dict__.pop("encoder", None)
        for store in self._stores.values():
            store.decode = self.reader.read

    def setup(self, stage: str) -> None:
        """Takes the rank from the Trainer that this module was handed to as `datamodule`; Lightning calls it."""
        if self.trainer is not None:
            self._context = replace(self.context, rank=self.trainer.global_rank, world_size=self.trainer.world_size)

    def start_at(self, position: Position) -> None:
        """Makes the next training loader begin at a position, that of a batch or checkpoint."""
        self._context = replace(self.context, position=position)

    def attach_features(self, lookup: FeatureLookup | None) -> None:
        """Makes batches hold `lookup(split, sample number)` instead of images; None undoes this."""
        assert lookup is None or self.config.view != "tasks", "prompted targets train the encoder: it needs images"
        self._lookup = lookup

    def train_dataloader(self) -> CountingLoader:
        """Returns endless batches from the context's position on; their order is a function of seed and position."""
        context, config, datasets = self.context, self.config, self.datasets("train")
        if not isinstance(context.position, int):
            raise DataError("the position to resume from is that of a stream; resume with data: webdataset")
        items = [self._dataset_items("train", number) for number in range(len(datasets))]
        order = GlobalOrder(
            [len(dataset_items) for dataset_items in items],
            context.seed,
            None if datasets[0].share is None else [dataset.share or 0 for dataset in datasets],
            [dataset.name for dataset in datasets],
            [self._blocks(number, dataset_items) for number, dataset_items in enumerate(items)],
        )
        rows = TrainRows(
            RowOrder(order, concatenate(items), config.layout, config.sequence_length),
            context.batch_size,
            context.position,
            context.rank,
            context.world_size,
        )
        return BatchLoader(self._batch_dataset("train"), rows, config.workers, config.max_bad_fraction)

    def val_dataloader(self) -> FiniteBatchLoader:
        """Returns the validation split once, in order; the last batch may be smaller."""
        context = self.context
        numbers = range(len(self.datasets("validation")))
        items = concatenate([self._dataset_items("validation", number) for number in numbers])
        rows = ValidationRows(items, context.batch_size, context.rank, context.world_size)
        dataset, config = self._batch_dataset("validation"), self.config
        return FiniteBatchLoader(dataset, rows, config.workers, config.max_bad_fraction)

    @property
    def context(self) -> DataContext:
        """The context that `connect` was given."""
        assert self._context is not None, "connect(context) comes before the loaders"
        return self._context

    @cached_property
    def encoder(self) -> ConversationEncoder:
        """Encodes conversations and captions as token ids with the connected tokenizer."""
        return conversation_encoder(self.context, self.config)

    @property
    def reader(self) -> TileReader:
        """Turns images into pixels for the connected encoder."""
        image, config = self.context.image, self.config
        reader = ImageReader(image, config.image_fit, config.jpeg_decoder, config.scaled_decode)
        return TileReader(reader, Tiling.of(config.tiles, image.size))

    def store(self, split: str) -> SampleStore:
        """Returns the samples of a split, dataset after dataset; DataError if it has no shards."""
        if split not in self._stores:
            shards = [shard for dataset in self.datasets(split) for shard in dataset.shards]
            # Before `connect`, only the number of images is asked for, so the decoder does not matter.
            decode = decode_image if self._context is None else self.reader.read
            store = SampleStore(shards, split, self.cache, decode)
            refused = sum(problem.count for problem in store.problems.values())
            whole = len(store) + refused
            if whole >= MIN_SAMPLES_JUDGED and refused > self.config.max_bad_fraction * whole:
                reasons = ", ".join(f"{reason}: {problem.count}" for reason, problem in store.problems.items())
                raise DataError(
                    f"{refused} of what the shards of {split} hold cannot be read ({reasons}), more than "
                    f"max_bad_fraction {self.config.max_bad_fraction} of it; `fvl shards check` names the places"
                )
            self._stores[split] = store
        return self._stores[split]

    def questions(self, split: str) -> list[Question]:
        """Returns the questions of a split, each with its answer and kind."""
        return list_questions(self.store(split), self.asking)

    def pixels(self, split: str, indices: Sequence[int]) -> Tensor:
        """Returns the images of these samples, or their tiles, sample after sample, [I, 3, P, P] float32 normalised."""
        store = self.store(split)
        return self.reader.images.pixels([image for i in indices for image in store.images(i)])

    def tile_counts(self, split: str, i: int) -> list[int]:
        """Returns how many of its `pixels` each image of a sample has: 1, or the number of its tiles."""
        store, tiling = self.store(split), self.reader.tiling
        return [1] * store.image_count(i) if tiling is None else [tiling.grid(s).tiles for s in store.image_sizes(i)]

    def sized(self, split: str, i: int, messages: Sequence[Message]) -> Sequence[Message]:
        """Returns messages about the images of a sample with what `encoder` must know about the images."""
        return messages if self.encoder.tiling is None else with_sizes(messages, self.store(split).image_sizes(i))

    def prompted(self, split: str, indices: Sequence[int]) -> PromptedBatch:
        """Returns these samples as prompted targets, to score the encoder on; DataError if one is broken."""
        assert self.config.view == "tasks"
        loaded = self._batch_dataset(split)[single_rows(indices)]
        for error in [loaded.error, *loaded.bad]:
            if error is not None:
                raise error
        assert isinstance(loaded.batch, PromptedBatch)
        return loaded.batch

    def limits(self) -> str:
        """Returns what a score on this data set cannot show, as a paragraph for a report; empty by default."""
        return ""

    def manifest_hash(self) -> str:
        """Returns the name of a training run's data: the hash of its two splits."""
        return hashlib.sha256("".join(map(self.split_hash, TRAINING_SPLITS)).encode()).hexdigest()[:16]

    def content_hash(self, splits: Sequence[str] = TRAINING_SPLITS) -> str:
        """Returns a hash of these splits with their bytes (SampleStore.content_hash); it needs no `connect`."""
        hashes = [f"{split} {self.split_hash(split, content=True)}" for split in splits]
        return hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:16]

    def split_hash(self, split: str, content: bool = False) -> str:
        """Returns the name of one split's data; with `content` it depends on the bytes too."""
        store = self.store(split)
        return store.content_hash() if content else store.manifest_hash()

    def _ends(self, split: str) -> list[int]:
        """Returns the number of the first sample after each dataset."""
        counts = self.store(split).samples_per_shard
        return [sum(counts[:last]) for last in accumulate(len(dataset.shards) for dataset in self.datasets(split))]

    def _dataset_items(self, split: str, number: int) -> Items:
        """Returns the items of one dataset of a split, measured if rows must be planned."""
        ends, config = [0, *self._ends(split)], self.config
        samples = range(ends[number], ends[number + 1])
        planned = split == "train" and config.layout != "padded"
        dataset, store = self.datasets(split)[number], self.store(split)
        by_turn = (self.context.conditioned or config.by_turn) and dataset.view == "conversation"
        if config.view == "tasks" or not (planned or by_turn or config.over_long != "truncate"):
            return Items.whole(samples)
        view = self.view(dataset.view)
        assert isinstance(view, TextView)
        items = measure_items(store, samples, view, self._cache_folder(dataset), config.workers)
        log_counts(items, store, samples, view, dataset.name, config.max_bad_fraction)
        return items

    def _cache_folder(self, dataset: SplitDataset) -> Path | None:
        """Returns the folder of a dataset's shards, or of the cache, in which its measured lengths are stored."""
        if self.cache is not None and is_remote(dataset.shards[0]):
            return self.cache.folder
        return Path(dataset.shards[0]).parent

    def _blocks(self, number: int, items: Items) -> list[int] | None:
        """Returns the items per block of a remote dataset; the shards of a block fit into half of the cache."""
        dataset, store = self.datasets("train")[number], self.store("train")
        if self.cache is None or not any(map(is_remote, dataset.shards)):
            return None
        first = sum(len(earlier.shards) for earlier in self.datasets("train")[:number])
        shards = slice(first, first + len(dataset.shards))
        ends = list(accumulate(store.samples_per_shard))[shards]
        blocks: list[int] = []
        last = size = 0
        for end, shard_bytes in zip(ends, store.bytes_per_shard[shards], strict=True):
            held = int(np.searchsorted(items.samples, end)) - last
            if blocks and size + shard_bytes <= self.cache.max_bytes // 2:
                blocks[-1] += held
                size += shard_bytes
            else:
                blocks.append(held)
                size = shard_bytes
            last += held
        return [held for held in blocks if held]

    def _batch_dataset(self, split: str) -> BatchDataset:
        config, datasets = self.config, self.datasets(split)
        views = {name: self.view(name) for name in {dataset.view for dataset in datasets}}
        packed = split == "train" and config.layout == "packed"
        each = [views[dataset.view] for dataset in datasets]
        return BatchDataset(self.store(split), each, self._ends(split), self._collate(datasets, packed), self._lookup)

    def view(self, name: str) -> View:
        """Returns the view `name`, which turns samples into tokens; ConfigError as of text_view."""
        if name == "tasks":
            return TasksView(self.context, self.config.sequence_length)
        return text_view(name, self.context, self.config, self.encoder)

    def _collate(self, datasets: Sequence[SplitDataset], packed: bool) -> Collate:
        config = self.config
        if config.view == "tasks":
            return prompted_collate(self.context, config.image_fit)
        names = [dataset.name for dataset in datasets] if len(datasets) > 1 else []
        return row_collate(self.context, self._lookup is not None, packed, names, config.image_fit)
