"""Training data from WebDataset shards of one's own."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from lightning import LightningDataModule
from torch import Tensor

from datamodules.conversation import ConversationEncoder
from datamodules.loader import (
    BatchDataset,
    BatchLoader,
    Collate,
    FeatureLookup,
    FiniteBatchLoader,
    prompted_collate,
    row_collate,
)
from datamodules.order import Rows, TrainRows, ValidationRows
from datamodules.pixels import to_pixels
from datamodules.questions import Question, list_questions
from datamodules.store import SampleStore, decode_image
from datamodules.views import View, caption_view, conversation_view, tasks_view
from fvl_lightning.core.registry import register
from fvl_lightning.core.types import DataContext, PromptedBatch

TRAINING_SPLITS = ("train", "validation")


@register("data", "shards")
class ShardsData(LightningDataModule):
    """Batches from `<root>/<split>-*.tar`, splits train and validation; datamodules/README.md has the format.

    Life: prepare_data(), before anything of the model exists; connect(context); then the loaders.
    """

    @dataclass
    class Config:
        """Where the shards are and how their samples are used."""

        root: str
        """The folder with train-000000.tar, validation-000000.tar and so on."""
        view: Literal["conversation", "caption", "tasks"] = "conversation"
        """What a sample is: its conversation, its caption, or one target per prompt of the encoder."""
        workers: int = 0
        """Processes that read ahead; 0 reads in the training process. Batches are the same for any number."""
        sequence_length: int = 2048
        """Tokens a row may have, image tokens included; longer conversations lose their last turns."""
        max_bad_fraction: float = 0.01
        """Fraction of samples that may be unusable; above it the run stops and names shard and key."""

        def __post_init__(self) -> None:
            for name, good in (
                ("workers", self.workers >= 0),
                ("sequence_length", self.sequence_length >= 1),
                ("max_bad_fraction", 0 <= self.max_bad_fraction <= 1),
            ):
                if not good:
                    raise ValueError(f"{name} can't be {vars(self)[name]}")

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self._context: DataContext | None = None
        self._lookup: FeatureLookup | None = None
        self._stores: dict[str, SampleStore] = {}

    @property
    def folder(self) -> Path:
        """Where this configuration's shards lie."""
        return Path(self.config.root)

    def prepare_data(self) -> None:
        """Indexes shards that have no index yet; raises DataError where train or validation is missing or broken."""
        for split in TRAINING_SPLITS:
            self.store(split)

    def connect(self, context: DataContext) -> None:
        """Tells what the batches are for: image size, tokenizer, batch size, seed, position, rank."""
        self._context = context
        self.__dict__.pop("encoder", None)

    def attach_features(self, lookup: FeatureLookup | None) -> None:
        """From now on batches hold `lookup(split, sample number)` in place of images; None takes it back."""
        assert lookup is None or self.config.view != "tasks", "prompted targets train the encoder: it needs images"
        self._lookup = lookup

    def train_dataloader(self) -> BatchLoader:
        """Batches without end from the context's position on, in an order that is a function of seed and position."""
        context, store = self.context, self.store("train")
        rows = TrainRows(
            len(store), context.seed, context.batch_size, context.position, context.rank, context.world_size
        )
        return BatchLoader(self._dataset(store), rows, self.config.workers, self.config.max_bad_fraction)

    def val_dataloader(self) -> FiniteBatchLoader:
        """The validation split once, in order; the last batch may be smaller."""
        context, store = self.context, self.store("validation")
        rows = ValidationRows(len(store), context.batch_size, context.rank, context.world_size)
        return FiniteBatchLoader(self._dataset(store), rows, self.config.workers, self.config.max_bad_fraction)

    @property
    def context(self) -> DataContext:
        """What `connect` was told."""
        assert self._context is not None, "connect(context) comes before the loaders"
        return self._context

    @cached_property
    def encoder(self) -> ConversationEncoder:
        """Conversations and captions -> token ids, for the connected tokenizer."""
        context = self.context
        return ConversationEncoder(context.tokenizer, context.image_token_id, context.image.tokens_per_image)

    def store(self, split: str) -> SampleStore:
        """The samples of a split; DataError where it has no shards."""
        if split not in self._stores:
            self._stores[split] = SampleStore(self.folder, split)
        return self._stores[split]

    def questions(self, split: str) -> list[Question]:
        """The questions of a split, each with its answer and kind."""
        return list_questions(self.store(split))

    def pixels(self, split: str, indices: Sequence[int]) -> Tensor:
        """The images of these samples, one sample after the other, [I, 3, P, P] float32 normalised."""
        store = self.store(split)
        return to_pixels([image for i in indices for image in store.images(i)], self.context.image)

    def prompted(self, split: str, indices: Sequence[int]) -> PromptedBatch:
        """These samples as prompted targets, to score the encoder on; DataError where one is broken."""
        assert self.config.view == "tasks"
        loaded = self._dataset(self.store(split))[Rows(tuple(indices), position=0)]
        for error in [loaded.error, *loaded.bad]:
            if error is not None:
                raise error
        assert isinstance(loaded.batch, PromptedBatch)
        return loaded.batch

    def read_image(self, path: Path) -> Tensor:
        """A picture of one's own as the encoder wants it, [3, P, P] float32 normalised; DataError where it can't be."""
        return to_pixels([decode_image(path)], self.context.image)[0]

    def manifest_hash(self) -> str:
        """Names the data of a training run: the hash of what its two splits hold."""
        hashes = [self.store(split).manifest_hash() for split in TRAINING_SPLITS]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()[:16]

    def _dataset(self, store: SampleStore) -> BatchDataset:
        return BatchDataset(store, self._view(), self._collate(), self._lookup)

    def _view(self) -> View:
        if self.config.view == "tasks":
            return tasks_view(self.context, self.config.sequence_length)
        view = conversation_view if self.config.view == "conversation" else caption_view
        return view(self.encoder, self.config.sequence_length)

    def _collate(self) -> Collate:
        if self.config.view == "tasks":
            return prompted_collate(self.context)
        return row_collate(self.context, with_features=self._lookup is not None)
