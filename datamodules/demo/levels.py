"""Levels of the demo set: the colours, shapes, words, digits and bars of its images."""

from dataclasses import dataclass

from fvl_lightning.core.errors import unknown_name

SIZE = 64
"""Side of every image, in pixels."""

HELD_OUT_PAIRS = (("red", "star"), ("blue", "triangle"), ("yellow", "square"))
"""Colour-shape pairs that only occur in the split test_unseen_pairs; their colours and shapes occur elsewhere too."""

QUADRANTS = ("top left", "top right", "bottom left", "bottom right")
NINTHS = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")
"""Names of the cells of a 2 x 2 and of a 3 x 3 grid over the image, row by row."""


@dataclass(frozen=True)
class Level:
    """The ranges that a scene is drawn from; pairs (a, b) are inclusive, lengths are in pixels."""

    name: str
    colours: tuple[str, ...]
    shapes: tuple[str, ...]
    shape_count: tuple[int, int]
    places: tuple[str, ...]
    radius: tuple[float, float]
    jitter: float
    words: tuple[str, ...]
    unseen_words: tuple[str, ...]
    word_count: tuple[int, int]
    font_size: int
    digit_count: int
    digit_size: int
    bar_count: tuple[int, int]
    tallest_value: int
    value_gap: int
    relations: bool
    """Whether questions also ask for relations, partial counts and the values of bars."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
_SHAPES = ("circle", "square", "triangle", "star")

EASY = Level(
    name="easy",
    colours=_COLOURS,
    shapes=_SHAPES,
    shape_count=(1, 4),
    places=QUADRANTS,
    radius=(9.5, 12.0),
    jitter=3.0,
    words=_words("cat dog sun car hat bus cup key map pen box fox bed jam leg owl"),
    unseen_words=_words("cow hen bat mug"),
    word_count=(1, 1),
    font_size=22,
    digit_count=1,
    digit_size=40,
    bar_count=(2, 5),
    tallest_value=8,
    value_gap=2,
    relations=False,
)
MEDIUM = Level(
    name="medium",
    colours=_COLOURS,
    shapes=_SHAPES,
    shape_count=(3, 6),
    places=NINTHS,
    radius=(6.5, 9.0),
    jitter=6.0,
    words=_words(
        "bird fish tree lamp moon ship frog lion bear duck wolf leaf rose cake milk door book shoe coat ring kite nest "
        "drum hand"
    ),
    unseen_words=_words("goat seed bell corn lake tent"),
    word_count=(1, 1),
    font_size=18,
    digit_count=2,
    digit_size=30,
    bar_count=(3, 6),
    tallest_value=9,
    value_gap=1,
    relations=True,
)
HARD = Level(
    name="hard",
    colours=(*_COLOURS, "cyan", "white"),
    shapes=(*_SHAPES, "diamond", "cross"),
    shape_count=(5, 8),
    places=NINTHS,
    radius=(5.0, 7.5),
    jitter=6.5,
    words=_words(
        "apple bread chair cloud grape horse house lemon mouse ocean piano plant river robot sheep snake spoon stone "
        "table tiger tower train truck water whale wheel zebra candy eagle flute grass honey"
    ),
    unseen_words=_words("beach camel melon panda crown koala"),
    word_count=(1, 2),
    font_size=15,
    digit_count=3,
    digit_size=22,
    bar_count=(5, 8),
    tallest_value=12,
    value_gap=1,
    relations=True,
)
LEVELS = {level.name: level for level in (EASY, MEDIUM, HARD)}


def level_named(name: str) -> Level:
    """Returns the level of that name; ConfigError with the nearest name where there is none."""
    if name not in LEVELS:
        raise unknown_name("level", name, LEVELS, "level of the demo set")
    return LEVELS[name]
