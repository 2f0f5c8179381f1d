"""Converts values to the declared types of their fields before OmegaConf merges them.

Text keeps its characters, ~ in a path becomes the home folder, and a single value becomes a list of one. Mistakes that
OmegaConf accepts silently, or reports in its own terms, are reported here in one sentence.
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from omegaconf.errors import (
    GrammarParseError,
    InterpolationKeyError,
    OmegaConfBaseException,
)

from fvl_lightning.core.config.addresses import has_password, without_login
from fvl_lightning.core.config.field_docs import field_meanings
from fvl_lightning.core.config.known_keys import OTHER_VALUES
from fvl_lightning.core.config.places import Location
from fvl_lightning.core.config.yaml_text import Texts, joined
from fvl_lightning.core.errors import ConfigError, first_line, unknown_name

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
"""What a field of one value takes."""
BOOLEANS = ("true", "false", "yes", "no", "on", "off", "y", "n", "1", "0")
"""Texts that stand for a boolean."""
WHOLE_INTERPOLATION = re.compile(r"\$\{[^{}]*\}")
"""A text that is one interpolation, which may stand for a list."""
_PATH = "path"
PathText = Annotated[str, _PATH]
"""A file or folder, where ~ is the home folder; or an alternative to a path, such as a hub id."""
PathsText = Annotated[Any, _PATH]
"""A PathText or a list of them; the Config checks that it is one of both."""


def conform(expected: Any, value: Any, key: str, place: Location, texts: Texts) -> Any:
    """Converts a value to the type of its field.

    Args:
        expected: the field's type, with the metadata of Annotated.
        value: a plain value.
        key: its dotted path, also in `texts`.
        place: maps the key to where it was written.
        texts: the characters of plain scalars.

    Raises:
        ConfigError: an unknown key, or a value of another type.
    """
    options = [option for option in get_args(expected) if option is not type(None)]
    if get_origin(expected) is Annotated:
        if expected == PathsText:
            options = [list[str] if isinstance(value, list) else str]
        value = conform(options[0], value, key, place, texts)
        return _path(value, key, place) if _PATH in expected.__metadata__ else value
    if expected is Any:
        return value
    if isinstance(value, str) and "${" in value:  # OmegaConf checks an interpolation once it is resolved
        return [value] if get_origin(expected) is list and not WHOLE_INTERPOLATION.fullmatch(value) else value
    if type(None) in get_args(expected):
        return _optional(options, value, key, place, texts)
    if dataclasses.is_dataclass(expected):
        return _fields(expected, value, key, place, texts)
    return _of_type(expected, options, value, key, place, texts)


def _of_type(expected: Any, options: list[Any], value: Any, key: str, place: Location, texts: Texts) -> Any:
    origin = get_origin(expected) or expected
    if origin is dict:
        if not isinstance(value, Mapping):
            full = place(key).partition(" ")[0]
            raise ConfigError(f"{place(key)}: expected keys and values, such as {full}.<name>=..., found {value!r}")
        inner = options[1] if options else Any
        return {name: conform(inner, given, joined(key, name), place, texts) for name, given in value.items()}
    if origin is list or (origin is tuple and (... in options or not options)):
        return _list(options[0] if options else Any, value, key, place, texts)
    if origin is Literal:
        return _one_of(options, value, key, place, texts)
    if origin is tuple:
        return _tuple(expected, options, value, key, place)
    if value is None:
        raise ConfigError(f"{place(key)}: a value is needed, found null")
    return _scalar(expected, value, key, place, texts)


def _path(value: Any, key: str, place: Location) -> Any:
    """Expands ~ and ~name in a path or a list of paths; refuses an address with a password."""
    if isinstance(value, list):
        return [_path(item, key, place) for item in value]
    if isinstance(value, str) and has_password(value):
        problem = f"{without_login(value)} contains a password, and addresses are stored"
        raise ConfigError(f"{place(key)}: {problem}; remove it, and pass it as the protocol's package reads it")
    return os.path.expanduser(value) if isinstance(value, str) else value


def _optional(options: list[Any], value: Any, key: str, place: Location, texts: Texts) -> Any:
    if texts.get(key) == "None":
        raise ConfigError(f"{place(key)}: write null, as None is Python's word for it")
    return conform(options[0], value, key, place, texts) if value is not None and len(options) == 1 else value


def _fields(expected: Any, value: Any, key: str, place: Location, texts: Texts) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{place(key)}: expected keys and values, found {value!r}")
    hints = get_type_hints(expected, include_extras=True)
    types = {f.name: hints[f.name] for f in dataclasses.fields(expected)}
    taken = {}
    for name, inner in value.items():
        taken[name] = conform(types[name], inner, joined(key, name), place, texts)
    for f in dataclasses.fields(expected):
        if f.default is f.default_factory is dataclasses.MISSING and f.name not in value:
            meaning = field_meanings(expected).get(f.name, "").partition(". ")[0]
            raise ConfigError(f"{place(joined(key, f.name))} is needed: {meaning}")
    return taken


def _list(expected: Any, value: Any, key: str, place: Location, texts: Texts) -> list[Any]:
    if value is None or (isinstance(value, Mapping) and expected is not Any):
        raise ConfigError(f"{place(key)}: expected a list, found {'null' if value is None else value}")
    if not isinstance(value, list | tuple):
        return [conform(expected, value, key, place, texts)]  # one stands for a list of one
    return [conform(expected, item, joined(key, number), place, texts) for number, item in enumerate(value)]


def _one_of(options: list[Any], value: Any, key: str, place: Location, texts: Texts) -> Any:
    written = texts.get(key, value) if all(isinstance(option, str) for option in options) else value
    if written not in options:
        meant = OTHER_VALUES.get(str(written).lower())
        raise unknown_name("value", written, options, place(key), meant if meant in options else None)
    return written


def _tuple(expected: Any, options: list[Any], value: Any, key: str, place: Location) -> Any:
    items = value if isinstance(value, list | tuple) else []
    kinds = [int | float if option is float else option for option in options]
    if len(items) != len(kinds) or not all(map(isinstance, items, kinds)):
        raise ConfigError(f"{place(key)}: expected {expected}, found {value!r}")
    return value


def _scalar(expected: Any, value: Any, key: str, place: Location, texts: Texts) -> Any:
    kind = KINDS.get(expected)
    if kind is not None and isinstance(value, list | tuple | Mapping):
        raise ConfigError(f"{place(key)}: expected {kind}, found {value!r}")
    if expected is str:
        return texts.get(key, value)
    if expected is bool and not _is_boolean(value):
        raise ConfigError(f"{place(key)}: expected {kind}, found {value!r}")
    return value


def _is_boolean(value: Any) -> bool:
    return value.lower() in BOOLEANS if isinstance(value, str) else value in (0, 1)


def refusal(error: OmegaConfBaseException) -> str:
    """Returns in plain words why OmegaConf refuses a value; these are values with ${...}."""
    if isinstance(error, InterpolationKeyError):
        missing = re.search(r"'([^']*)'", first_line(error))
        return f"there is no key '{missing[1] if missing else '?'}' to take the value of"
    if isinstance(error, GrammarParseError):
        return "a value with '${' refers to another key, as in ${optimizer.learning_rate}, and this one refers to none"
    number = re.search(r"Value '(.*)' of type '.*' could not be converted to (Integer|Float)", first_line(error))
    if number:
        return f"expected {KINDS[int if number[2] == 'Integer' else float]}, found '{number[1]}'"
    return "what it refers to with ${...} is of another type"
