"""Values of a row's fields: by dotted name, as texts, and as the options of a multiple-choice question."""

import ast
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from string import ascii_uppercase
from typing import Any

from fvl_lightning.core.errors import ConfigError, DataError, nearest

_MAX_LIST = 100_000
"""Characters of the longest text that is read as a list."""
_MAX_NAMES = 40
"""Fields that a message lists."""
_MARKED = re.compile(r"\(([a-z])\)")


def root_of(name: str, names: Iterable[str]) -> str:
    """Returns the field of the row that a dotted name begins with; a field's own name may have a dot."""
    return name if name in names else name.partition(".")[0]


def check_names(wanted: Mapping[str, Iterable[str]], names: Iterable[str], where: str) -> None:
    """Raises ConfigError for a field that rows do not have.

    Args:
        wanted: {key of the task file: names of fields}.
        names: the fields of the rows.
        where: the files, for the message.
    """
    there = list(names)
    for key, fields in wanted.items():
        for name in fields:
            if root_of(name, there) not in there:
                close = nearest(name, there)
                hint = f"; did you mean '{close}'?" if close else ""
                listed = ", ".join(sorted(there)[:_MAX_NAMES]) or "none"
                raise ConfigError(f"{key}: the rows of {where} have no field '{name}', there are {listed}{hint}")


def value_at(row: Mapping[str, Any], name: str) -> Any:
    """Returns the value of a field; a dotted name is looked up in nested mappings, and in each one of a list.

    Raises:
        DataError: there is no such field.
    """
    if name in row:
        return row[name]
    head, _, rest = name.partition(".")
    if head not in row or not rest:
        raise DataError(f"no field '{name}', there are {', '.join(map(str, row)) or 'none'}")
    return _inner(row[head], rest)


def texts_at(row: Mapping[str, Any], name: str) -> list[str]:
    """Returns the texts in a field, one by one; empty values are left out. DataError as value_at."""
    return list(_texts(value_at(row, name), name))


def text_at(row: Mapping[str, Any], name: str) -> str:
    """Returns the text of a field, "" if it is empty; DataError if there is no such field or it has several texts."""
    texts = texts_at(row, name)
    if len(texts) > 1:
        raise DataError(f"field '{name}' has {len(texts)} texts where one is expected")
    return texts[0] if texts else ""


def is_filled(value: Any) -> bool:
    """Returns whether a value is not empty; tables write an empty cell as null, NaN, "" or the text nan."""
    if isinstance(value, str):
        return value.strip() not in ("", "nan")
    if isinstance(value, list | tuple | Mapping):
        return bool(value)
    return value is not None and value == value


def plain_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the texts, finite numbers and booleans of a row, by name."""
    return {name: value for name, value in row.items() if _is_plain(value)}


def options_at(row: Mapping[str, Any], names: Iterable[str]) -> tuple[str, ...]:
    """Returns the options of a question, from one field or one of each field, without empty ones at the end.

    Raises:
        DataError: as value_at; an option before another one is empty, or there is only one option, or too many.
    """
    fields = list(names)
    options: list[str] = []
    for name in fields:
        value = value_at(row, name)
        if len(fields) == 1 and isinstance(value, str):
            value = _listed(value)
        options += _texts(value, name) if len(fields) == 1 else [text_at(row, name)]
    while options and not is_filled(options[-1]):
        options.pop()
    if not all(map(is_filled, options)):
        raise DataError(f"an option in {', '.join(fields)} is empty and another one follows it, so letters are unclear")
    if len(options) == 1 or len(options) > len(ascii_uppercase):
        raise DataError(f"{len(options)} options in {', '.join(fields)}, expected none, or 2 to {len(ascii_uppercase)}")
    return tuple(options)


def letter_of(answer: str, form: str, options: tuple[str, ...]) -> str:
    """Returns the letter of the right option.

    Args:
        answer: the reference.
        form: how the reference names the option: letter, number or option, see TaskFields.answers_as.
        options: the options.

    Raises:
        DataError: it names none of them.
    """
    letters = ascii_uppercase[: len(options)]
    if form == "option":
        found = [letter for letter, option in zip(letters, options, strict=True) if option.strip() == answer.strip()]
        letter = found[0] if found else ""
    elif form == "number":
        number = int(answer) if re.fullmatch(r"\d{1,4}", answer.strip()) else len(letters)
        letter = letters[number : number + 1]
    else:
        bare = answer.strip(" ().:").upper()
        letter = bare if len(bare) == 1 and bare in letters else ""
    if not letter:
        raise DataError(f"the answer {answer!r} is not the {form} of any of the {len(options)} options")
    return letter


def _inner(value: Any, rest: str) -> Any:
    if isinstance(value, list | tuple):
        found = [_inner(one, rest) for one in value]
        return [one for inner in found for one in (inner if isinstance(inner, list) else [inner])]
    if isinstance(value, Mapping):
        return value_at(value, rest)
    if value is None:
        return None
    raise DataError(f"no field '{rest}' in a {type(value).__name__}")


def _texts(value: Any, name: str) -> Iterator[str]:
    """Yields the texts of a value, and of all values in a list."""
    if isinstance(value, bytes):  # a Parquet column that its writer did not declare as text
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise DataError(f"field '{name}' holds bytes that are not UTF-8 text") from None
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one, name)
    elif isinstance(value, bool | int | float):
        if value == value:
            yield str(value)
    elif isinstance(value, Mapping):
        inner = next(iter(value), "")
        raise DataError(f"field '{name}' holds mappings; name one of their fields, such as {name}.{inner}")
    elif value is not None:
        yield str(value)


def _listed(text: str) -> Any:
    """Returns the options in a text: a list in JSON or Python, or options that are marked as (a), (b) and so on."""
    stripped = text.strip()
    if len(stripped) > _MAX_LIST:
        raise DataError(f"a text of {len(stripped)} characters, at most {_MAX_LIST} are read as options")
    if stripped.startswith("["):
        for read in (json.loads, ast.literal_eval):
            try:
                found = read(stripped)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            if isinstance(found, list):
                return found
    pieces = _MARKED.split(stripped)
    letters = [letter.upper() for letter in pieces[1::2]]
    if not pieces[0].strip() and letters and letters == list(ascii_uppercase[: len(letters)]):
        return [piece.strip() for piece in pieces[2::2]]
    if not is_filled(stripped):
        return []
    raise DataError(f"{stripped[:80]!r} is no list of options")


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))
