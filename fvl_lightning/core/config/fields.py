"""Declares the fields of a Config: the range of a number, and what changing the field affects.

A numeric field is written `rank: int = number(16, at_least=1)`. `check_numbers` reads the declarations of every Config,
including those of plugins, so that no Config checks a number by hand. Numbers must be finite everywhere.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from fvl_lightning.core.errors import ConfigError

Changes = Literal["result", "placement", "nothing"]
"""Effect of another value: on what is learnt (result), on where the same samples are computed and how they are saved
(placement), or on nothing that training computes, such as the logging interval."""
MAX_SEED = 2**63 - 1
"""Largest seed that torch and Python both accept, with room to add a rank."""


@dataclass(frozen=True)
class Range:
    """The numbers that a field accepts; null is also accepted where the field's type has it."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    hint: str = ""
    """Advice for the message, such as "null turns it off"."""

    def __str__(self) -> str:
        bounds = (
            ("at least", self.at_least), ("above", self.above), ("at most", self.at_most), ("below", self.below)
        )  # fmt: skip
        return " and ".join(f"{words} {_number(bound)}" for words, bound in bounds if bound is not None)

    def holds(self, value: float) -> bool:
        """Returns whether `value` is within all bounds; NaN never is."""
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )


def number(
    default: Any = dataclasses.MISSING,
    *,
    default_factory: Any = dataclasses.MISSING,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    hint: str = "",
    changes: Changes = "result",
    instead_of: str | None = None,
) -> Any:
    """Returns a dataclass field for a number, or for a list, tuple or mapping of numbers, each within the range.

    Args:
        instead_of: another field of the dataclass that says the same in another way. The later layer of configuration
            with one of the two has the last word: it removes the other one of earlier layers.

    The return type is Any, as it is for `dataclasses.field`.
    """
    declared = {"range": Range(at_least, above, at_most, below, hint), "changes": changes, "instead_of": instead_of}
    if default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=default_factory, metadata=declared)
    if default is not dataclasses.MISSING:
        return dataclasses.field(default=default, metadata=declared)
    return dataclasses.field(metadata=declared)


def changes(what: Changes, default: Any = dataclasses.MISSING, default_factory: Any = dataclasses.MISSING) -> Any:
    """Returns a dataclass field that is not a number, with the effect of changing it."""
    if default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=default_factory, metadata={"changes": what})
    return dataclasses.field(default=default, metadata={"changes": what})


def check_numbers(config: Any, place: Callable[[str], str], key: str = "") -> None:
    """Raises ConfigError for a number outside its field's range, in a dataclass or in one inside it.

    Args:
        config: the dataclass.
        place: maps a dotted key to where it was written, for the message.
        key: the dotted key of `config` itself.
    """
    for field in dataclasses.fields(config):
        value, allowed = getattr(config, field.name), field.metadata.get("range")
        # Values for another library, such as a model's own configuration, may be infinite.
        leaves = _leaves(value, f"{key}.{field.name}" if key else field.name)
        for inner, leaf in leaves:
            if dataclasses.is_dataclass(leaf):
                check_numbers(leaf, place, inner)
            elif allowed is not None or leaf is value:
                _check(leaf, allowed or Range(), place(inner))


def _check(value: float, allowed: Range, where: str) -> None:
    hint = f"; {allowed.hint}" if allowed.hint else ""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where} must be a finite number, not {value:g}{hint}")
    if not allowed.holds(value):
        raise ConfigError(f"{where} must be {allowed}, not {_number(value)}{hint}")


def keys_that_change(config: Any, what: Changes) -> set[str]:
    """Returns the dotted keys of a checked configuration whose fields declare the effect `what`."""
    keys: set[str] = set()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if "slot" in field.metadata and value is not None:
            value = value.config
        if field.metadata.get("changes", "result") == what:
            keys.add(field.name)
        elif dataclasses.is_dataclass(value):
            keys |= {f"{field.name}.{inner}" for inner in keys_that_change(value, what)}
    return keys


def defaults_of(config: Any) -> dict[str, Callable[[], bool]]:
    """Returns the fields that hold their default, with a check that an older configuration without the field agrees.

    A configuration from before a field existed means its default, unless the default does something new; then the
    field's metadata {"before": <function of its Config>} decides.

    Returns:
        {dotted key: function that returns whether a configuration without the key had the same effect}.
    """
    checks: dict[str, Callable[[], bool]] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        if value == default:
            checks[field.name] = partial(field.metadata.get("before", _same_as_before), config)
        for key, inner in _configs(value, field.name, "slot" in field.metadata or "slots" in field.metadata):
            checks |= {f"{key}.{name}": check for name, check in defaults_of(inner).items()}
    return checks


def _same_as_before(config: Any) -> bool:
    """Returns True: most defaults do what was done before their field existed."""
    return True


def _configs(value: Any, key: str, chosen: bool) -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, dataclass) of the Configs in a field's value; the value of a slot (`chosen`) contains one."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _configs(inner, f"{key}.{name}", chosen)
    elif dataclasses.is_dataclass(value):
        yield key, vars(value)["config"] if chosen else value


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, number or dataclass) of everything in a field's value."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner, key)
    elif dataclasses.is_dataclass(value) or (isinstance(value, int | float) and not isinstance(value, bool)):
        yield key, value


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def differences(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Returns the dotted keys in which two plain configurations differ, sorted."""
    keys: list[str] = []
    for key in sorted(set(one) | set(other)):
        left, right = one.get(key), other.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            keys += differences(left, right, f"{prefix}{key}.")
        elif left != right:
            keys.append(f"{prefix}{key}")
    return keys
