"""The demo's tokenizer: a byte-level BPE of 512 tokens, trained on the texts of all levels' train splits."""

from collections.abc import Iterator
from pathlib import Path

from datamodules.demo.levels import LEVELS
from datamodules.demo.scenes import make_scene, sample_random
from datamodules.demo.text import caption, labels, turns, words_in
from datamodules.encoding import byte_level_bpe
from fvl_lightning.core.florence2_prompts import RELEASED_PROMPTS

_SCENES_PER_LEVEL = 1000


def save_tokenizer(folder: Path) -> None:
    """Trains the tokenizer and saves it for AutoTokenizer; it always writes the same files."""
    byte_level_bpe.save_tokenizer(folder, _texts())


def _texts() -> Iterator[str]:
    """Yields the encoder's prompts and the texts of the first train scenes of every level, always drawn with seed 0."""
    # Prompts are as frequent as scenes, so that each becomes a dozen tokens rather than forty: every image needs all.
    yield from list(RELEASED_PROMPTS.values()) * _SCENES_PER_LEVEL
    for level in LEVELS.values():
        for index in range(_SCENES_PER_LEVEL):
            rng = sample_random(0, level.name, "train", index)
            scene = make_scene(rng, level, "train")
            names = labels(scene)
            order = rng.sample(range(len(names)), len(names))
            yield caption(scene, level, order, rng.randrange(3))
            yield words_in(scene)
            yield from names
            for turn in turns(scene, level, rng):
                yield turn.question
                yield turn.answer
