"""Draws the contents of a demo image, and assigns every scene to one split.

The hash of a scene's description (its objects with their colours and places; its words, number or bars) decides its
split. A split draws scenes until a description belongs to it, so that no description occurs in two splits, for any seed
and level. Sample i is a pure function of (seed, level, split, i).
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from datamodules.demo.handwriting import scans_of
from datamodules.demo.levels import HELD_OUT_PAIRS, QUADRANTS, SIZE, Level

SPLITS = ("train", "validation", "test")
UNSEEN_WORDS = "test_unseen_words"
UNSEEN_PAIRS = "test_unseen_pairs"
ALL_SPLITS = (*SPLITS, UNSEEN_WORDS, UNSEEN_PAIRS)

FAMILIES = {"shapes": 36, "words": 28, "bars": 18, "number": 18}
"""Families of scenes and their shares in percent."""


@dataclass(frozen=True)
class Shape:
    """A coloured shape: centre and radius in pixels; `place` is the name of the grid cell of its centre."""

    colour: str
    shape: str
    place: str
    x: float
    y: float
    radius: float


class Placed:
    """An object with a place: `across` and `down` in [0, 1] of the free space."""

    across: float
    down: float

    @property
    def cell(self) -> tuple[int, int]:
        """Column and row of its place in a 3 x 3 grid over the free space."""
        return min(int(self.across * 3), 2), min(int(self.down * 3), 2)


@dataclass(frozen=True)
class Word(Placed):
    """A printed word with its place."""

    colour: str
    text: str
    across: float
    down: float


@dataclass(frozen=True)
class Bar:
    """One bar of a chart; `value` is in units of the axis."""

    colour: str
    value: int


@dataclass(frozen=True)
class Number(Placed):
    """A handwritten number and its place. Each digit is a scan from scikit-learn's digits data."""

    colour: str
    digits: str
    scans: tuple[int, ...]
    across: float
    down: float


@dataclass(frozen=True)
class Scene:
    """The contents of an image: one family, and the objects of that family; `background` is a dark grey, 0-255."""

    family: str
    background: int
    shapes: tuple[Shape, ...] = ()
    words: tuple[Word, ...] = ()
    bars: tuple[Bar, ...] = ()
    number: Number | None = None

    @property
    def description(self) -> str:
        """The text that decides the split: everything a question can ask for, without jitter, size and shade."""
        things = sorted(f"{s.colour} {s.shape} {s.place}" for s in self.shapes)
        things += [f"{w.colour} {w.text} {w.cell[0]}{w.cell[1]}" for w in self.words]
        things += [f"{b.colour} {b.value}" for b in self.bars]
        if self.number is not None:
            things.append(f"{self.number.colour} {self.number.digits} {self.number.cell[0]}{self.number.cell[1]}")
        return f"{self.family}: {', '.join(things)}"


def split_of(description: str) -> str:
    """Returns the split of a description: by its hash, 80 % train, 10 % validation, 10 % test."""
    bucket = int.from_bytes(hashlib.sha256(description.encode()).digest()[:4], "big") % 10
    return "train" if bucket < 8 else "validation" if bucket == 8 else "test"


def sample_random(seed: int, level: str, split: str, index: int) -> Random:
    """Returns the random number generator of one sample."""
    digest = hashlib.sha256(f"fvl demo {seed} {level} {split} {index}".encode()).digest()
    return Random(int.from_bytes(digest[:16], "big"))


def make_scene(rng: Random, level: Level, split: str) -> Scene:
    """Draws scenes until one belongs to `split`.

    Family and number of objects are drawn only once, so that rejected scenes do not change their distribution.
    """
    if split == UNSEEN_WORDS:
        family = "words"
    elif split == UNSEEN_PAIRS:
        family = "shapes"
    else:
        family = rng.choices(list(FAMILIES), weights=list(FAMILIES.values()))[0]
    draw, (low, high) = _GENERATORS[family], _count(level, family)
    count = rng.randint(low, high)
    while True:
        scene = draw(rng, level, split, count)
        if split not in SPLITS or split_of(scene.description) == split:
            return scene


def _count(level: Level, family: str) -> tuple[int, int]:
    counts = {
        "shapes": level.shape_count,
        "words": level.word_count,
        "bars": level.bar_count,
        "number": (level.digit_count, level.digit_count),
    }
    return counts[family]


def _background(rng: Random) -> int:
    return rng.randint(8, 40)


def _draw_shapes(rng: Random, level: Level, split: str, count: int) -> Scene:
    pairs = _draw_pairs(rng, level, split, count)
    while True:
        places = rng.sample(range(len(level.places)), count)
        shapes = tuple(_place_shape(rng, level, *pair, place) for pair, place in zip(pairs, places, strict=True))
        if _apart(shapes):
            return Scene("shapes", _background(rng), shapes=shapes)


def _draw_pairs(rng: Random, level: Level, split: str, count: int) -> list[tuple[str, str]]:
    """Draws colour-shape pairs; test_unseen_pairs has at least one held-out pair, other splits have none."""
    allowed = [(c, s) for c in level.colours for s in level.shapes]
    if split == UNSEEN_PAIRS:
        pairs = [rng.choice(HELD_OUT_PAIRS), *(rng.choice(allowed) for _ in range(count - 1))]
        rng.shuffle(pairs)
        return pairs
    allowed = [pair for pair in allowed if pair not in HELD_OUT_PAIRS]
    return [rng.choice(allowed) for _ in range(count)]


def _place_shape(rng: Random, level: Level, colour: str, shape: str, place: int) -> Shape:
    """Places a shape near the centre of a cell, inside the image and away from the cell's borders."""
    side = 2 if level.places == QUADRANTS else 3
    row, column = divmod(place, side)
    radius = rng.uniform(*level.radius)
    x, y = (
        min(max((cell + 0.5) * SIZE / side + rng.uniform(-level.jitter, level.jitter), radius + 1), SIZE - 1 - radius)
        for cell in (column, row)
    )
    return Shape(colour, shape, level.places[place], round(x, 2), round(y, 2), round(radius, 2))


def _apart(shapes: tuple[Shape, ...]) -> bool:
    """Returns whether shapes overlap at most slightly, and shapes of the same colour not at all."""
    for i, one in enumerate(shapes):
        for other in shapes[:i]:
            distance = ((one.x - other.x) ** 2 + (one.y - other.y) ** 2) ** 0.5
            wanted = 1.1 if one.colour == other.colour else 0.8
            if distance < wanted * (one.radius + other.radius):
                return False
    return True


def _draw_words(rng: Random, level: Level, split: str, count: int) -> Scene:
    lexicon = level.unseen_words if split == UNSEEN_WORDS else level.words
    texts = rng.sample(lexicon, count)
    colours = rng.sample(level.colours, count)
    words = tuple(
        Word(colour, text, round(rng.random(), 3), round(rng.random(), 3))
        for colour, text in zip(colours, texts, strict=True)
    )
    return Scene("words", _background(rng), words=words)


def _draw_bars(rng: Random, level: Level, split: str, count: int) -> Scene:
    """Draws bars of different colours; the tallest and the shortest differ from the others by the level's gap."""
    colours = rng.sample(level.colours, count)
    while True:
        values = [rng.randint(1, level.tallest_value) for _ in range(count)]
        ordered = sorted(values)
        if ordered[-1] - ordered[-2] >= level.value_gap and ordered[1] - ordered[0] >= level.value_gap:
            bars = tuple(Bar(colour, value) for colour, value in zip(colours, values, strict=True))
            return Scene("bars", _background(rng), bars=bars)


def _draw_number(rng: Random, level: Level, split: str, count: int) -> Scene:
    digits = [rng.randint(1 if count > 1 and position == 0 else 0, 9) for position in range(count)]
    scans = tuple(rng.choice(scans_of(digit, split)) for digit in digits)
    number = Number(
        colour=rng.choice(level.colours),
        digits="".join(map(str, digits)),
        scans=scans,
        across=round(rng.random(), 3),
        down=round(rng.random(), 3),
    )
    return Scene("number", _background(rng), number=number)


_GENERATORS: dict[str, Callable[[Random, Level, str, int], Scene]] = {
    "shapes": _draw_shapes,
    "words": _draw_words,
    "bars": _draw_bars,
    "number": _draw_number,
}
