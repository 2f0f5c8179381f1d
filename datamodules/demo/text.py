"""Texts about a scene: its caption, its words, labels of its boxes, and questions with their answers.

A question is only asked if the scene has exactly one answer. Within one image, no question contains the answer to
another ("where is the red circle?" would answer "what colour is the circle?"), so that every answer needs the image.
"""

from dataclasses import dataclass
from itertools import pairwise
from random import Random

from datamodules.demo.levels import Level
from datamodules.demo.scenes import Scene, Shape

KINDS = ("colour", "shape", "where", "count", "word", "word_colour", "digits", "bars", "tallest", "shortest")
"""Kinds of questions, at every level."""

NO_TEXT = "no text"
_CLEAR = 6.0
"""Distance of two centres in pixels from which one shape is clearly left of or above the other."""


@dataclass(frozen=True)
class Turn:
    """One question and its answer; `kind` is one of KINDS."""

    kind: str
    question: str
    answer: str


def caption(scene: Scene, level: Level, order: list[int], style: int) -> str:
    """Returns a caption of the objects in the given order.

    Args:
        style: 0, 1 or 2, the order of attributes; with a single order, training stalls.
    """
    if scene.shapes:
        return " , ".join(_shape_phrase(scene.shapes[i], style) for i in order)
    if scene.words:
        phrases = [
            (f"the word {w.text} in {w.colour}", f"in {w.colour} the word {w.text}", f"the {w.colour} word {w.text}")
            for w in scene.words
        ]
        return " , ".join(phrases[i][style] for i in order)
    if scene.bars:
        phrases = _bar_phrases(scene, level)
        return f"{len(phrases)} bars : " + " , ".join(phrases[i][style] for i in order)
    assert scene.number is not None
    digits, colour = scene.number.digits, scene.number.colour
    return (
        f"the number {digits} written by hand in {colour}",
        f"in {colour} the number {digits} written by hand",
        f"the {colour} handwritten number {digits}",
    )[style]


def words_in(scene: Scene) -> str:
    """Returns the text in the image from top to bottom, or NO_TEXT."""
    if scene.number is not None:
        return scene.number.digits
    return " ".join(word.text for word in scene.words) or NO_TEXT


def labels(scene: Scene) -> list[str]:
    """Returns the label of each object's box, in the order of the scene's objects."""
    if scene.shapes:
        return [f"{shape.colour} {shape.shape}" for shape in scene.shapes]
    if scene.words:
        return [f"{word.colour} word" for word in scene.words]
    if scene.bars:
        return [f"{bar.colour} bar" for bar in scene.bars]
    assert scene.number is not None
    return [f"{scene.number.colour} number"]


def turns(scene: Scene, level: Level, rng: Random) -> list[Turn]:
    """Returns the questions about a scene with their answers, shuffled; at least one."""
    if scene.shapes:
        asked = _shape_turns(scene.shapes, level, rng)
    elif scene.words:
        asked = _word_turns(scene, rng)
    elif scene.bars:
        asked = _bar_turns(scene, level, rng)
    else:
        assert scene.number is not None
        asked = [Turn("digits", "which number is written by hand?", scene.number.digits)]
    rng.shuffle(asked)
    return asked


def _shape_phrase(shape: Shape, style: int) -> str:
    return (
        f"the {shape.colour} {shape.shape} at the {shape.place}",
        f"at the {shape.place} the {shape.colour} {shape.shape}",
        f"the {shape.shape} in {shape.colour} at the {shape.place}",
    )[style]


def _bar_phrases(scene: Scene, level: Level) -> list[tuple[str, str, str]]:
    """Describes each bar with its value, or at levels without values as the tallest, the shortest or a middle one."""
    if level.relations:
        valued = [(bar.colour, bar.value) for bar in scene.bars]
        return [(f"the {c} bar is {v}", f"{v} is the {c} bar", f"the bar of {v} in {c}") for c, v in valued]
    values = [bar.value for bar in scene.bars]
    rank = {max(values): "tallest", min(values): "shortest"}
    named = [(bar.colour, rank.get(bar.value, "middle")) for bar in scene.bars]
    return [(f"the {c} bar is {r}", f"the {r} bar is {c}", f"the {r} bar in {c}") for c, r in named]


def _word_turns(scene: Scene, rng: Random) -> list[Turn]:
    if len(scene.words) == 1:
        word = scene.words[0]
        return [
            Turn("word", "what word is written?", word.text),
            Turn("word_colour", "what colour is the word?", word.colour),
        ]
    named, read = rng.sample(scene.words, 2)
    return [
        Turn("word", f"what is the {read.colour} word?", read.text),
        Turn("word_colour", f"what colour is the word {named.text}?", named.colour),
    ]


def _bar_turns(scene: Scene, level: Level, rng: Random) -> list[Turn]:
    bars = sorted(scene.bars, key=lambda bar: bar.value)
    shortest, tallest = bars[0], bars[-1]
    asked = [
        Turn("bars", "how many bars are there?", str(len(bars))),
        Turn("tallest", "what colour is the tallest bar?", tallest.colour),
        Turn("shortest", "what colour is the shortest bar?", shortest.colour),
    ]
    if level.relations:
        # It asks for the value of a bar in between, so that no answer reveals the tallest or the shortest.
        middle = rng.choice(bars[1:-1])
        asked.append(Turn("bars", f"how high is the {middle.colour} bar?", str(middle.value)))
        asked.append(Turn("tallest", "how high is the tallest bar?", str(tallest.value)))
    return asked


def _shape_turns(shapes: tuple[Shape, ...], level: Level, rng: Random) -> list[Turn]:
    """Asks for counts, places, and one attribute of each shape that the other questions do not mention."""
    asked = [Turn("count", "how many shapes are there?", str(len(shapes)))]
    mentioned: dict[int, set[str]] = {i: set() for i in range(len(shapes))}
    if level.relations:
        asked.append(_partial_count(shapes, rng))
        asked += _relation(shapes, mentioned, rng)
    order = rng.sample(range(len(shapes)), len(shapes))
    for i in order[: 1 if level.relations else 2]:
        turn = _place(shapes, i, mentioned, rng)
        if turn is not None:
            asked.append(turn)
    kinds = rng.sample(("colour", "shape"), 2)
    for i in rng.sample(order, len(order)):
        # Colour and shape alternate, so that both are asked where two shapes allow it.
        for kind in kinds:
            turn = _attribute(shapes, i, kind, mentioned[i])
            if turn is not None:
                asked.append(turn)
                kinds.reverse()
                break
    return asked


def _partial_count(shapes: tuple[Shape, ...], rng: Random) -> Turn:
    one = rng.choice(shapes)
    if rng.random() < 0.5:
        number = sum(shape.colour == one.colour for shape in shapes)
        return Turn("count", f"how many {one.colour} shapes are there?", str(number))
    number = sum(shape.shape == one.shape for shape in shapes)
    return Turn("count", f"how many {_plural(one.shape)} are there?", str(number))


def _plural(shape: str) -> str:
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def _reference(shapes: tuple[Shape, ...], index: int, rng: Random) -> tuple[str, set[str]] | None:
    """Returns a phrase that identifies a shape, by one attribute if possible, and the attributes in it; or None."""
    one = shapes[index]
    ways = []
    if sum(other.shape == one.shape for other in shapes) == 1:
        ways.append((f"the {one.shape}", {"shape"}))
    if sum(other.colour == one.colour for other in shapes) == 1:
        ways.append((f"the {one.colour} shape", {"colour"}))
    if ways:
        return rng.choice(ways)
    if sum((other.colour, other.shape) == (one.colour, one.shape) for other in shapes) == 1:
        return f"the {one.colour} {one.shape}", {"colour", "shape"}
    return None


def _place(shapes: tuple[Shape, ...], index: int, mentioned: dict[int, set[str]], rng: Random) -> Turn | None:
    reference = _reference(shapes, index, rng)
    if reference is None:
        return None
    phrase, attributes = reference
    mentioned[index] |= attributes
    return Turn("where", f"where is {phrase}?", shapes[index].place)


def _attribute(shapes: tuple[Shape, ...], index: int, kind: str, mentioned: set[str]) -> Turn | None:
    one = shapes[index]
    if kind in mentioned:
        return None
    if kind == "colour" and sum(other.shape == one.shape for other in shapes) == 1:
        return Turn("colour", f"what colour is the {one.shape}?", one.colour)
    if kind == "shape" and sum(other.colour == one.colour for other in shapes) == 1:
        return Turn("shape", f"what shape is {one.colour}?", one.shape)
    return None


def _relation(shapes: tuple[Shape, ...], mentioned: dict[int, set[str]], rng: Random) -> list[Turn]:
    """Returns a question such as "what is left of the red circle?" with one clear answer; no question without one."""
    sides = [
        ("left of", lambda shape: shape.x),
        ("right of", lambda shape: -shape.x),
        ("above", lambda shape: shape.y),
        ("below", lambda shape: -shape.y),
    ]
    rng.shuffle(sides)
    for side, along in sides:
        order = sorted(range(len(shapes)), key=lambda i: along(shapes[i]))
        answer, asked = order[0], order[1]
        gaps = [along(shapes[b]) - along(shapes[a]) for a, b in pairwise(order[:3])]
        pair = (shapes[asked].colour, shapes[asked].shape)
        unique = sum((other.colour, other.shape) == pair for other in shapes) == 1
        if unique and min(gaps) >= _CLEAR:
            mentioned[asked] |= {"colour", "shape"}
            mentioned[answer] |= {"colour", "shape"}
            question = f"what is {side} the {pair[0]} {pair[1]}?"
            return [Turn("where", question, f"{shapes[answer].colour} {shapes[answer].shape}")]
    return []
