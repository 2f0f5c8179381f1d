"""Data module of the demo set, which is drawn on first use and then read like any other shards."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from datamodules.base import BatchData, SplitDataset
from datamodules.batching.config import BatchConfig
from datamodules.demo.build import COUNTS, build_demo, build_tokenizer, demo_folder
from datamodules.demo.levels import HELD_OUT_PAIRS, LEVELS, level_named
from datamodules.demo.scenes import UNSEEN_PAIRS, UNSEEN_WORDS
from datamodules.storage.shard_paths import split_shards
from fvl_lightning.core.config.field_types import PathText
from fvl_lightning.core.config.fields import MAX_SEED, number
from fvl_lightning.core.registry import register


@register("data", "demo")
class DemoData(BatchData):
    """Images of 64 pixels with coloured shapes, words, bar charts and handwriting; prepare_data() draws missing ones.

    Splits: train, validation, test, test_unseen_words, test_unseen_pairs.
    """

    @dataclass
    class Config(BatchConfig):
        """Settings of the demo set; each combination of counts and seed has its own folder under `root`."""

        root: PathText = "data/demo"
        """Folder of the demo sets and their tokenizer."""
        level: str = "easy"
        """easy, medium or hard. Sets number and size of the objects in an image, and the kinds of questions."""
        train_images: int = number(COUNTS["train"], at_least=1)
        """Images in the split `train`."""
        validation_images: int = number(COUNTS["validation"], at_least=1)
        """Images in the split `validation`."""
        test_images: int = number(COUNTS["test"], at_least=1)
        """Images in the split `test`."""
        unseen_images: int = number(COUNTS[UNSEEN_WORDS], at_least=1)
        """Images in each of the two test sets of unseen words and unseen colour-shape pairs."""
        seed: int = number(0, at_least=0, at_most=MAX_SEED)
        """Another seed draws another set; all sets split scenes by the same rule."""

        def __post_init__(self) -> None:
            super().__post_init__()
            level_named(self.level)

        def for_one_batch(self) -> Self:
            """Returns the same set with a few images per split, in a folder of its own."""
            return replace(self, train_images=8, validation_images=4, test_images=4, unseen_images=4)

        def for_test_at(self, level: str) -> Self:
            """Returns the set of another level with all test images, and one image in each other split."""
            return replace(self, level=level, train_images=1, validation_images=1, unseen_images=1)

        @property
        def counts(self) -> dict[str, int]:
            """Images per split."""
            return {
                "train": self.train_images,
                "validation": self.validation_images,
                "test": self.test_images,
                UNSEEN_WORDS: self.unseen_images,
                UNSEEN_PAIRS: self.unseen_images,
            }

    config: Config
    levels = tuple(LEVELS)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    @property
    def folder(self) -> Path:
        """The folder of this configuration's shards."""
        return demo_folder(Path(self.config.root), self.config.level, self.config.counts, self.config.seed)

    def datasets(self, split: str) -> list[SplitDataset]:
        """Returns the only dataset."""
        return [SplitDataset("", split_shards(str(self.folder), split), self.config.view)]

    @property
    def tokenizer_path(self) -> Path:
        """The folder of the demo's tokenizer, which is the same for every level, count and seed."""
        return Path(self.config.root) / "tokenizer"

    def limits(self) -> str:
        """Returns how small the set is: what is drawn at this level, and what training never shows."""
        level = level_named(self.config.level)
        pairs = ", ".join(f"{colour} {shape}" for colour, shape in HELD_OUT_PAIRS)
        digits = f"{level.digit_count} digit{'s' if level.digit_count > 1 else ''}"
        return (
            f"The images are drawn: {len(level.words)} words, {len(level.colours)} colours x {len(level.shapes)} "
            f"shapes, up to {level.bar_count[1]} bars, and handwritten numbers of {digits} composed from real scans, "
            "other scans for testing than for training. Questions come from templates and answers from a short list. "
            "No description of a test scene occurs in training, but its words and objects do, so a good score here is "
            f"not reading or counting in general. Training never shows {len(level.unseen_words)} further words "
            f"({', '.join(level.unseen_words)}) and {len(HELD_OUT_PAIRS)} of the colour-shape pairs ({pairs}): rows "
            "named *unseen*, where they were asked for, step outside the set."
        )

    def prepare_data(self) -> None:
        """Draws the set and trains its tokenizer, unless they exist; ConfigError without scikit-learn."""
        build_demo(Path(self.config.root), self.config.level, self.config.counts, self.config.seed)
        super().prepare_data()

    def prepare_split(self, split: str) -> None:
        """Draws the whole set, unless it exists, and opens the split."""
        self.prepare_data()
        super().prepare_split(split)

    def prepare_tokenizer(self) -> None:
        """Makes the tokenizer of all demo sets, unless it exists."""
        build_tokenizer(Path(self.config.root))
