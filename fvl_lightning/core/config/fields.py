"""Declarations on the fields of a Config: the range of a number, and what a change of the field affects.

A numeric field is written `rank: int = number(16, at_least=1)`. `check_numbers` reads the declarations of every Config,
plugins' included, so that no Config checks a number by hand. Numbers that are not finite are refused everywhere.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from fvl_lightning.core.errors import ConfigError

Changes = Literal["result", "placement", "nothing"]
"""What another value changes: what is learnt (result), where the same samples are computed and how they are saved
(placement), or nothing that training computes, such as how often it is logged."""
MAX_SEED = 2**63 - 1
"""The largest seed that torch's and Python's generators take alike, less the number of a rank."""


@dataclass(frozen=True)
class Range:
    """The numbers that a field may have; null stays allowed where the field's type has it."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    hint: str = ""
    """What to write instead, such as "null turns it off"."""

    def __str__(self) -> str:
        bounds = (
            ("at least", self.at_least), ("above", self.above), ("at most", self.at_most), ("below", self.below)
        )  # fmt: skip
        return " and ".join(f"{words} {_number(bound)}" for words, bound in bounds if bound is not None)

    def holds(self, value: float) -> bool:
        """Whether `value` lies within all bounds; NaN lies nowhere."""
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
) -> Any:
    """A dataclass field of a number, or of a list, tuple or mapping of numbers, and the range each of them must have.

    Typed Any, as `dataclasses.field` is to a type checker.
    """
    declared = {"range": Range(at_least, above, at_most, below, hint), "changes": changes}
    if default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=default_factory, metadata=declared)
    if default is not dataclasses.MISSING:
        return dataclasses.field(default=default, metadata=declared)
    return dataclasses.field(metadata=declared)


def changes(what: Changes, default: Any = dataclasses.MISSING, default_factory: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that is no number, and what another value of it changes."""
    if default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=default_factory, metadata={"changes": what})
    return dataclasses.field(default=default, metadata={"changes": what})


def check_numbers(config: Any, place: Callable[[str], str], key: str = "") -> None:
    """ConfigError for a number of a dataclass, or of one inside it, that its field does not allow.

    Args:
        place: from a dotted key to where it was written, as messages say it.
        key: the dotted key of `config` itself.
    """
    for field in dataclasses.fields(config):
        value, allowed = getattr(config, field.name), field.metadata.get("range")
        # What a foreign library reads, such as a model's own configuration, may hold infinity.
        held = _leaves(value, f"{key}.{field.name}" if key else field.name)
        for inner, leaf in held:
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
    """The dotted keys of a checked configuration whose fields declare that they change `what`."""
    found: set[str] = set()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if "slot" in field.metadata and value is not None:
            value = value.config
        if field.metadata.get("changes", "result") == what:
            found.add(field.name)
        elif dataclasses.is_dataclass(value):
            found |= {f"{field.name}.{inner}" for inner in keys_that_change(value, what)}
    return found


def defaults_of(config: Any) -> dict[str, Callable[[], bool]]:
    """{dotted key: whether a configuration without it meant what it is now} of fields that hold their default.

    A field's metadata {"before": <function of its Config>} answers for one whose default does something new.
    """
    found: dict[str, Callable[[], bool]] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        made = field.default_factory
        default = field.default if made is dataclasses.MISSING else made()
        if value == default:
            found[field.name] = partial(field.metadata.get("before", _as_before), config)
        for key, inner in _configs(value, field.name, "slot" in field.metadata or "slots" in field.metadata):
            found |= {f"{key}.{name}": meant for name, meant in defaults_of(inner).items()}
    return found


def _as_before(config: Any) -> bool:
    """A default does what was done before its field was there."""
    return True


def _configs(value: Any, key: str, chosen: bool) -> Iterator[tuple[str, Any]]:
    """(dotted key, dataclass) of the Configs in a field's value; what is `chosen` for a slot holds its own."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _configs(inner, f"{key}.{name}", chosen)
    elif dataclasses.is_dataclass(value):
        yield key, vars(value)["config"] if chosen else value


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """(dotted key, number or dataclass) of everything in a field's value."""
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
