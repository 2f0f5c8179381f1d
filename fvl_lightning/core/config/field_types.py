"""Converts values to the declared types of their fields before OmegaConf merges them.

Text keeps its characters, a path its home folder, a single value stands for a list of one, and what OmegaConf would
take in silence or refuse in words of its own is refused here in a sentence.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from fvl_lightning.core.addresses import has_password, without_login
from fvl_lightning.core.config.field_docs import field_meanings
from fvl_lightning.core.config.yaml_text import Texts, joined
from fvl_lightning.core.errors import ConfigError, first_line, unknown_name

Location = Callable[[str], str]
"""From a dotted key to where it was written, as messages say it; from "" to the whole."""
NUMBERS = {"Integer": "a whole number", "Float": "a number"}
"""OmegaConf's names of types, in words."""
_PATH = "path"
PathText = Annotated[str, _PATH]
"""A file or folder, where ~ is the home folder; or something else that a path may stand for, such as a hub's name."""
PathsText = Annotated[Any, _PATH]
"""A PathText, or a list of them; the class checks itself that it is either."""


def conform(expected: Any, value: Any, key: str, place: Location, texts: Texts) -> Any:
    """The value as a field of the type `expected` takes it.

    Args:
        expected: a type, with the metadata of Annotated.
        value: plain.
        key: its dotted path, in `texts` too.
        place: where it was written.
        texts: the characters of plain scalars.

    Raises:
        ConfigError: an unknown key, a value that the type has no place for.
    """
    options = [option for option in get_args(expected) if option is not type(None)]
    if get_origin(expected) is Annotated:
        if expected == PathsText:
            options = [list[str] if isinstance(value, list) else str]
        value = conform(options[0], value, key, place, texts)
        return _path(value, key, place) if _PATH in expected.__metadata__ else value
    if expected is Any or (isinstance(value, str) and "${" in value):
        return value  # an interpolation is checked by OmegaConf, once it is resolved
    if type(None) in get_args(expected):
        return _optional(options, value, key, place, texts)
    if dataclasses.is_dataclass(expected):
        return _fields(expected, value, key, place, texts)
    origin = get_origin(expected)
    if origin is dict and isinstance(value, Mapping):
        return {name: conform(options[1], inner, joined(key, name), place, texts) for name, inner in value.items()}
    if origin is list:
        return _list(options[0], value, key, place, texts)
    if origin is Literal:
        return _one_of(options, value, key, place, texts)
    if origin is tuple and ... not in options:
        return _tuple(expected, options, value, key, place)
    if value is None:
        raise ConfigError(f"{place(key)}: a value is needed, found null")
    return _scalar(expected, value, key, place, texts)


def _path(value: Any, key: str, place: Location) -> Any:
    """A path, or each of several, with the home folder for ~ and ~name; no address with a password in it."""
    if isinstance(value, list):
        return [_path(item, key, place) for item in value]
    if isinstance(value, str) and has_password(value):
        what = f"{without_login(value)} has a password in it, and addresses are written down"
        raise ConfigError(f"{place(key)}: {what}; take it out, and give it as the protocol's package reads it")
    return os.path.expanduser(value) if isinstance(value, str) else value


def _optional(options: list[Any], value: Any, key: str, place: Location, texts: Texts) -> Any:
    if texts.get(key) == "None":
        raise ConfigError(f"{place(key)}: None is Python's word for null, which is what to write here")
    return conform(options[0], value, key, place, texts) if value is not None and len(options) == 1 else value


def _fields(expected: Any, value: Any, key: str, place: Location, texts: Texts) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{place(key)}: expected keys and values, found {value!r}")
    hints = get_type_hints(expected, include_extras=True)
    types = {f.name: hints[f.name] for f in dataclasses.fields(expected)}
    taken = {}
    for name, inner in value.items():
        if name not in types:
            raise unknown_name("key", name, types, place(joined(key, name)))
        taken[name] = conform(types[name], inner, joined(key, name), place, texts)
    for f in dataclasses.fields(expected):
        if f.default is f.default_factory is dataclasses.MISSING and f.name not in value:
            meaning = field_meanings(expected).get(f.name, "").partition(". ")[0]
            raise ConfigError(f"{place(joined(key, f.name))} is needed: {meaning}")
    return taken


def _list(expected: Any, value: Any, key: str, place: Location, texts: Texts) -> list[Any]:
    if value is None or isinstance(value, Mapping):
        raise ConfigError(f"{place(key)}: expected a list, found {'null' if value is None else value}")
    if not isinstance(value, list | tuple):
        return [conform(expected, value, key, place, texts)]  # one stands for a list of one
    return [conform(expected, item, joined(key, number), place, texts) for number, item in enumerate(value)]


def _one_of(options: list[Any], value: Any, key: str, place: Location, texts: Texts) -> Any:
    written = texts.get(key, value) if all(isinstance(option, str) for option in options) else value
    if written not in options:
        raise unknown_name("value", written, options, place(key))
    return written


def _tuple(expected: Any, options: list[Any], value: Any, key: str, place: Location) -> Any:
    items = value if isinstance(value, list | tuple) else []
    kinds = [int | float if option is float else option for option in options]
    if len(items) != len(kinds) or not all(map(isinstance, items, kinds)):
        raise ConfigError(f"{place(key)}: expected {expected}, found {value!r}")
    return value


def _scalar(expected: Any, value: Any, key: str, place: Location, texts: Texts) -> Any:
    if expected is str:
        return texts.get(key, value)
    if expected is bool and isinstance(value, int | float) and value not in (0, 1):
        raise ConfigError(f"{place(key)}: expected true or false, found {value!r}")
    return value


def refusal(error: Exception) -> str:
    """Returns OmegaConf's reason, in plainer words where it speaks of types."""
    said = first_line(error)
    unfit = re.match(r"Value '(.*)' of type '.*' could not be converted to (Integer|Float)", said)
    return f"expected {NUMBERS[unfit[2]]}, found '{unfit[1]}'" if unfit else said
