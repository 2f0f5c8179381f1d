"""Names the file or command line in which the keys of a configuration were written, for messages."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fvl_lightning.core.config.base_files import Layer, Override, in_file
from fvl_lightning.core.errors import ConfigError

Location = Callable[[str], str]
"""Maps a dotted key to the place where it was written, for messages; "" stands for the whole configuration."""
_ORIGINS = "_origins"
"""Attribute of a loaded configuration: where its dotted keys were written."""


class RefusedValuesError(ConfigError):
    """Values that a Config refuses together, each of which may be allowed by itself."""

    problem: str = ""
    """The message without the place."""

    @classmethod
    def at(cls, where: str, problem: str) -> "RefusedValuesError":
        """Returns the error for values written at a place."""
        error = cls(f"{where}: {problem}")
        error.problem = problem
        return error


def place_of(key: str, origins: Mapping[str, str]) -> str:
    """Returns " in a.yaml" or " on the command line": where `key`, or the mapping around it, was written last."""
    while key and key not in origins:
        key = key.rpartition(".")[0]
    return in_file(origins.get(key, ""))


def location(outer: str, origins: Mapping[str, str]) -> Location:
    """Returns the function that gives the place of keys under `outer` ("" for the whole configuration)."""

    def place(key: str) -> str:
        full = ".".join(part for part in (outer, key) if part)
        return (full or "configuration") + place_of(full, origins)

    return place


def under(outer: str, place: Location) -> Location:
    """Returns `place` for keys relative to `outer`."""
    return lambda key: place(f"{outer}.{key}" if key else outer)


def culprit(
    error: RefusedValuesError,
    layers: Sequence[Layer],
    refusal_of: Callable[[Sequence[Layer]], RefusedValuesError | None],
) -> RefusedValuesError:
    """Returns the error with the place of the layer that made the values wrong: the last without which they are right.

    Args:
        error: the error for all layers together.
        layers: the layers, later ones over earlier ones.
        refusal_of: returns the error for some of them, placed in the last one; None where they are right.
    """
    found = refusal_of(layers)
    for number in range(len(layers) - 1, -1, -1):
        if found is None or found.problem != error.problem:
            return error
        before = refusal_of(layers[:number])
        if before is None or before.problem != error.problem:
            layer = layers[number]
            if not isinstance(layer, Override):
                return found
            problem = error.problem.removeprefix(f"{layer.key}: ")
            return RefusedValuesError.at(f"{layer.key}{in_file(layer[0])}", problem)
        found = before
    return error


def remember_origins(config: Any, origins: Mapping[str, str]) -> None:
    """Keeps with a loaded configuration where its keys were written; copies of it do not have that."""
    setattr(config, _ORIGINS, dict(origins))


def origin_of(config: Any, key: str, otherwise: str) -> str:
    """Returns the file in which a key of a loaded configuration was written, or "the command line".

    Args:
        config: the configuration.
        key: a dotted key.
        otherwise: the answer for a configuration that was not loaded, or a key that was not written.
    """
    origins: Mapping[str, str] = getattr(config, _ORIGINS, {})
    while key and key not in origins:
        key = key.rpartition(".")[0]
    return origins.get(key, otherwise) if key else otherwise
