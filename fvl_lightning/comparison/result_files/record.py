"""Dataclasses that are written as JSON and read again."""

import functools
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from math import nan
from types import UnionType
from typing import Any, Self, get_args, get_origin, get_type_hints

from fvl_lightning.core.errors import DataError

FLAT = {"flat": True}
"""Metadata of a field whose own keys are written in place of it."""
IF_FILLED = {"written": "if filled"}
"""Metadata of a field that is left out where it is empty, so that files of earlier versions keep their form."""


class Record:
    """A dataclass with a plain form of dicts, lists, texts and numbers."""

    def plain(self) -> dict[str, Any]:
        """Returns the plain form, with keys in the order of the fields."""
        return _plain(self)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Returns the value of a plain form; keys that are not fields are ignored.

        Raises:
            DataError: a field without a default is missing, or a value is of another type.
        """
        return _read(cls, values)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        written: dict[str, Any] = {}
        for part in fields(value):
            inner = _plain(getattr(value, part.name))
            if part.metadata == IF_FILLED and not inner:
                continue
            written |= inner if part.metadata == FLAT else {part.name: inner}
        return written
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _read(hint: Any, value: Any) -> Any:
    if is_dataclass(hint):
        return _read_fields(hint, value)
    kind, inner = get_origin(hint), get_args(hint)
    if kind is UnionType:
        return None if value is None else _read(inner[0], value)
    if kind is list:
        return [_read(inner[0], entry) for entry in _of_type(value, list)]
    if kind is tuple:
        entries = _of_type(value, list | tuple)
        hints = [inner[0]] * len(entries) if inner[-1] is Ellipsis else inner
        if len(hints) != len(entries):
            raise DataError(f"{len(entries)} values in place of {len(hints)} in a result")
        return tuple(_read(part, entry) for part, entry in zip(hints, entries, strict=True))
    if kind is dict:
        return {key: _read(inner[1], entry) for key, entry in _of_type(value, dict).items()}
    if hint is float:
        return nan if value is None else _of_type(value, float | int)
    return _of_type(value, hint) if hint in (str, int, bool) else value


def _of_type(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise DataError(f"{str(value)[:40]!r} is not a {getattr(kind, '__name__', kind)}, as a result holds it there")
    return value


def _entries(hint: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what can be an entry of a flat dict of records: mappings that have the required fields."""
    record = get_args(hint)[1]
    required = {part.name for part in fields(record) if part.default is MISSING and part.default_factory is MISSING}
    return {key: value for key, value in values.items() if isinstance(value, Mapping) and required <= value.keys()}


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _read_fields(cls: Any, values: Mapping[str, Any]) -> Any:
    hints, given = _hints(cls), {}
    _of_type(values, Mapping)
    named = {part.name for part in fields(cls) if part.metadata != FLAT}
    for part in fields(cls):
        hint = hints[part.name]
        if part.metadata == FLAT:
            others = {key: value for key, value in values.items() if key not in named}
            given[part.name] = _read(hint, others if is_dataclass(hint) else _entries(hint, others))
        elif part.name in values:
            given[part.name] = _read(hint, values[part.name])
        elif part.default is MISSING and part.default_factory is MISSING:
            raise DataError(f"{cls.__name__}: '{part.name}' is missing in a result")
    return cls(**given)
