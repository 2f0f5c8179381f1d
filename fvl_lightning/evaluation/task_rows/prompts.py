"""Templates of prompts, and the positions of images in the rendered texts.

A template is parsed here rather than given to str.format, which would follow attributes of the values.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from string import ascii_uppercase
from typing import Any

from fvl_lightning.core.errors import ConfigError, DataError, unknown_name

CHOICES, CHOICE_LETTERS = "choices", "letters"
"""Names that a template may use beside the fields of a row, for a task with options."""

_FILTERS: Mapping[str, Callable[[str], str]] = {"strip": str.strip, "lower": str.lower, "capitalize": str.capitalize}
_REMOVE = "remove"
_MARK = re.compile(r"<image(?: (\d{1,3}))?>")

Part = dict[str, Any]


@dataclass(frozen=True)
class _Field:
    """A field of the row in a template, and the functions that change its text."""

    name: str
    filters: tuple[Callable[[str], str], ...] = ()


@dataclass(frozen=True)
class _Condition:
    """A conditional part of a template: for rows with a filled field, an empty one, or one value."""

    name: str
    filled: bool
    value: str | None = None
    inner: "list[_Node]" = field(default_factory=list)

    def holds(self, text: str) -> bool:
        """Returns whether the part is rendered for a row with this text in the field."""
        return (bool(text) if self.value is None else text == self.value) == self.filled


_Node = str | _Field | _Condition


class Template:
    """A prompt with fields of a row in it; TaskConfig.prompt has the form.

    Attributes:
        names: the fields that it uses, and `choices` and `letters` if it uses them.

    Raises:
        ConfigError: a brace that is not closed, or an unknown function.
    """

    def __init__(self, text: str, where: str) -> None:
        self.text, self._where = text, where
        self._nodes, end = self._parse(0, inside=False)
        assert end == len(text), "the outermost level ends with the text"
        self.names = frozenset(_names(self._nodes))

    def render(self, text_of: Callable[[str], str]) -> str:
        """Returns the text of a row.

        Args:
            text_of: returns the text of a field, "" where it is not filled.
        """
        return "".join(_rendered(node, text_of) for node in self._nodes)

    def _parse(self, at: int, inside: bool) -> tuple[list[_Node], int]:
        """Returns the nodes from position `at` on, and the position after them: the end or a closing brace."""
        nodes: list[_Node] = []
        text = self.text
        while at < len(text):
            if text[at] == "}" and inside:
                return nodes, at
            if text[at] in "{}" and text[at : at + 2] == text[at] * 2:
                nodes.append(text[at])
                at += 2
            elif text[at] == "{":
                node, at = self._parse_braces(at)
                nodes.append(node)
            elif text[at] == "}":
                raise ConfigError(f"{self._where}: a }} without its {{ in {text!r}; a brace itself is written twice")
            else:
                stop = min((place for brace in "{}" if (place := text.find(brace, at)) >= 0), default=len(text))
                nodes.append(text[at:stop])
                at = stop
        if inside:
            raise self._unclosed()
        return nodes, at

    def _parse_braces(self, at: int) -> tuple[_Node, int]:
        condition = re.compile(r"\{([?!])([^{}:|=]+)(?:=([^{}:|]*))?:").match(self.text, at)
        if condition:
            inner, stop = self._parse(condition.end(), inside=True)
            return _Condition(condition[2].strip(), condition[1] == "?", condition[3], inner), stop + 1
        match = re.compile(r"\{([^{}]*)\}").match(self.text, at)
        if match is None:
            raise self._unclosed()
        name, *filters = match[1].split("|")
        if not name.strip():
            raise ConfigError(f"{self._where}: braces without the name of a field in {self.text!r}")
        return _Field(name.strip(), tuple(map(self._filter, filters))), match.end()

    def _filter(self, written: str) -> Callable[[str], str]:
        name, _, argument = written.partition(":")
        if name.strip() == _REMOVE and argument:
            return partial(_without, removed=argument)
        if name.strip() not in _FILTERS or argument:
            allowed = [*_FILTERS, f"{_REMOVE}:text"]
            raise unknown_name("function", written, allowed, f"{self._where}, in {self.text!r}")
        return _FILTERS[name.strip()]

    def _unclosed(self) -> ConfigError:
        return ConfigError(f"{self._where}: a {{ is not closed in {self.text!r}; a brace itself is written twice")


def choices_text(options: Sequence[str]) -> str:
    """Returns the options with their letters, one a line."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False))


def letters_text(options: Sequence[str]) -> str:
    """Returns the letters of the options, such as "A, B, C"."""
    return ", ".join(ascii_uppercase[: len(options)])


def place_images(text: str, images: Sequence[int | None]) -> tuple[list[Part], tuple[int, ...]]:
    """Returns the parts of the user's message, and the images that it shows, in order.

    `<image 2>` stands for image 2 of the row; its first mention counts, and images that are not named are not shown.
    `<image>` stands for the next image. A text without either has all images before it.

    Args:
        text: the prompt.
        images: the numbers of the row's images; None for a place that is empty.

    Raises:
        DataError: the text names more images than there are.
    """
    there = [number for number in images if number is not None]
    numbered = [match for match in _MARK.finditer(text) if match[1]]
    if numbered:
        return _place_numbered(text, images)
    pieces = text.split("<image>")
    marks = len(pieces) - 1
    if not there:
        pieces, marks = ["".join(pieces)], 0
    if marks > len(there):
        raise DataError(f"the prompt has {marks} times <image>, and there are {len(there)} images")
    parts: list[Part] = [{"type": "image"} for _ in there[: len(there) - marks]]
    for number, piece in enumerate(pieces):
        parts += [{"type": "image"}] if number else []
        parts += [{"type": "text", "text": piece}] if piece else []
    return parts, tuple(there)


def _place_numbered(text: str, images: Sequence[int | None]) -> tuple[list[Part], tuple[int, ...]]:
    parts: list[Part] = []
    shown: dict[int, int] = {}
    at = 0
    for match in _MARK.finditer(text):
        place = int(match[1] or 0)
        if place in shown or not match[1]:
            continue
        number = images[place - 1] if 0 < place <= len(images) else None
        if number is None:
            raise DataError(f"the prompt has {match[0]}, and the row has no image in place {place}")
        shown[place] = number
        parts += [{"type": "text", "text": text[at : match.start()]}] if text[at : match.start()] else []
        parts.append({"type": "image"})
        at = match.end()
    parts += [{"type": "text", "text": text[at:]}] if text[at:] else []
    return parts, tuple(shown.values())


def _without(text: str, removed: str) -> str:
    return text.replace(removed, "")


def _names(nodes: Sequence[_Node]) -> list[str]:
    found: list[str] = []
    for node in nodes:
        if not isinstance(node, str):
            found.append(node.name)
        if isinstance(node, _Condition):
            found += _names(node.inner)
    return found


def _rendered(node: _Node, text_of: Callable[[str], str]) -> str:
    if isinstance(node, str):
        return node
    text = text_of(node.name)
    if isinstance(node, _Condition):
        return "".join(_rendered(inner, text_of) for inner in node.inner) if node.holds(text) else ""
    for change in node.filters:
        text = change(text)
    return text
