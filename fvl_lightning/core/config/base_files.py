"""Reads YAML files as layers: one per file, after the layers of the files in its `base:`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fvl_lightning.core.config.yaml_text import plain, read_yaml
from fvl_lightning.core.errors import ConfigError, first_line, nearest

COMMAND_LINE = "the command line"
OVERRIDES = "the overrides"
"""The origin of overrides that are given in Python."""
MAX_BYTES = 16 * 2**20
"""Size of the largest file that is read as a configuration."""
Layer = tuple[str, dict[str, Any]]
"""(origin, values): the origin is the path of a file, or a description for messages; the values contain Scalars."""


class Override(tuple[str, dict[str, Any]]):
    """The layer of one `key=value`."""

    @property
    def key(self) -> str:
        """The dotted key that is set."""
        key, value = "", self[1]
        while isinstance(value, Mapping) and len(value) == 1 and (not key or "name" not in value):
            (name, value), *_ = value.items()
            key = f"{key}.{name}" if key else name
        return key


def read_layers(path: Path, chain: tuple[Path, ...] = (), named: Mapping[str, Path] | None = None) -> list[Layer]:
    """Returns the layers of `path` and its bases, the farthest base first.

    Args:
        path: a YAML file.
        chain: the files whose `base:` led to it.
        named: {name: file} of the bases that a file may name without a path.

    Raises:
        ConfigError: a file that is missing, malformed or, through its bases, its own base.
    """
    if path.resolve() in chain:
        raise ConfigError(f"{path}: `base:` leads back to itself")
    if not path.is_file():
        raise _no_file(path, f", named in `base:` of {chain[-1].name}" if chain else "")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path} is no configuration file: it has more than {MAX_BYTES:,} bytes")
        values = read_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no configuration file: it is not text (UTF-8)") from None
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError(f"{path} is not valid YAML: {line}{error.problem}") from None
    except (yaml.YAMLError, OSError) as error:
        raise ConfigError(f"{path} could not be read: {first_line(error)}") from None
    if plain(values) is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold keys and values, not a {type(plain(values)).__name__}")
    return layers_of(values, path, chain, named)


def _no_file(path: Path, by: str) -> ConfigError:
    """Returns the error for a path that is no file, with the files that may have been meant."""
    if path.is_dir():
        inner = [str(file) for file in sorted(path.glob("*.yaml"))]
        named = f", such as {', '.join(inner)}" if inner else ""
        return ConfigError(f"no configuration file {path}{by}: it is a folder, not a YAML file{named}")
    near = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
    hint = f"; in {path.parent} there are {', '.join(near)}" if near else ""
    close = nearest(path.name, near)
    return ConfigError(f"no configuration file {path}{by}{hint}" + (f"; did you mean '{close}'?" if close else ""))


def layers_of(
    values: Mapping[str, Any], path: Path, chain: tuple[Path, ...] = (), named: Mapping[str, Path] | None = None
) -> list[Layer]:
    """Returns the layers of the `values` written in `path`: those of its `base:` files, then its own."""
    own = dict(values)
    bases = plain(own.pop("base", None)) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"base in {path}: expected a file or a list of files, found {bases!r}")
    layers: list[Layer] = []
    for base in bases:
        file = (named or {}).get(base) or path.parent / os.path.expanduser(base)
        layers += read_layers(file, (*chain, path.resolve()), named)
    return [*layers, (str(path), own)]


def in_file(origin: str) -> str:
    """Returns " in a.yaml" or " on the command line", to follow a key in a message; "" for no origin."""
    return origin and f" {'on' if origin == COMMAND_LINE else 'in'} {origin}"
