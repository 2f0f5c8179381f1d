"""The arms of a comparison, named in `arms` or made from `axes`."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.core.config.merging import override, parse_override
from fvl_lightning.core.config.yaml_text import plain
from fvl_lightning.core.errors import ConfigError, unknown_name

SET_BY_THE_COMPARISON = ("name", "seed", "output", "tracking", "init_from", "feature_cache", "plugins")
"""Keys of an experiment that no arm may have of its own."""


DISTINCT_CHARACTERS = 10
"""Interfaces cut names; those of arms differ in as many characters."""


TUNING = "tuning"
"""The folder of what is trained to choose learning rates."""


FOLDERS = ("encoders", "feature_cache", TUNING)
"""What lies beside the arms' folders."""


@dataclass(frozen=True)
class Arm:
    """What an arm adds to every stage, and where that was written."""

    words: tuple[str, ...]
    said: str
    values: Mapping[str, Any]
    """{key: value} of what it sets."""


def arms_of(config: ComparisonConfig, path: Path) -> dict[str, Arm]:
    """The arms of the comparison written in `path` by name, in order.

    Raises:
        ConfigError: neither arms nor axes or both, axes that do not fit each other, a name or key that can't be used,
            or a baseline that is no arm.
    """
    if bool(config.arms) == bool(config.axes):
        given = "both, and" if config.arms else "neither, and"
        raise ConfigError(f"arms and axes in {path}: there are {given} a comparison has one of the two")
    if config.axes:
        arms = _crossed(_flat(config.axes, path), config.combine, path)
    else:
        arms = {}
        for name, written in config.arms.items():
            said = f"arms.{name}.set in {path}"
            values = dict(_leaf(parse_override(word, said)) for word in written.set)
            arms[name] = Arm(tuple(written.set), said, values)
    for name in arms:
        _check(name, arms[name], path)
    if config.baseline is not None and config.baseline not in arms:
        raise unknown_name("arm", config.baseline, arms, f"baseline in {path}")
    return arms


def _crossed(axes: Mapping[str, Sequence[Any]], combine: str, path: Path) -> dict[str, Arm]:
    lengths = {key: len(values) for key, values in axes.items()}
    if combine == "zip" and len(set(lengths.values())) > 1:
        counts = ", ".join(f"{key} has {number}" for key, number in lengths.items())
        raise ConfigError(f"axes in {path}: `combine: zip` needs as many values of every axis, and {counts}")
    combined = zip(*axes.values(), strict=True) if combine == "zip" else itertools.product(*axes.values())
    arms: dict[str, Arm] = {}
    for chosen in combined:
        values = dict(zip(axes, chosen, strict=True))
        words = tuple(override(key, value) for key, value in values.items())
        values = {key: plain(value) for key, value in values.items()}
        name = "-".join(_label(key, value) for key, value in values.items())
        if name in arms:
            raise ConfigError(f"axes in {path}: two of the arms would be called {name}, a value stands there twice")
        arms[name] = Arm(words, f"axes in {path}", values)
    return _distinct_names(arms)


def _distinct_names(arms: Mapping[str, Arm]) -> dict[str, Arm]:
    """The same arms, numbered where their names begin alike."""
    if len({name[:DISTINCT_CHARACTERS] for name in arms}) == len(arms):
        return dict(arms)
    width = len(str(len(arms)))
    return {f"{number:0{width}}-{name}": arm for number, (name, arm) in enumerate(arms.items(), start=1)}


def _label(key: str, value: Any) -> str:
    """A value as it stands in a name and as a folder: gated, davit+ocr, learning_rate_0.003."""
    if isinstance(value, Mapping):
        rest = [_label(inner, fact) for inner, fact in value.items() if inner != "name"]
        text = "_".join([str(value.get("name", "")), *rest]).strip("_")
    elif isinstance(value, list):
        text = "+".join(map(str, value))
    elif isinstance(value, str):
        text = value
    else:
        text = f"{key.rpartition('.')[2]}_{json.dumps(value)}"
    return re.sub(r"[^\w.+=]+", "_", text) or "empty"


def _flat(axes: Mapping[str, Any], path: Path, prefix: str = "") -> dict[str, list[Any]]:
    """{dotted key: values}: an axis may be written with dots or as nested keys."""
    flat: dict[str, list[Any]] = {}
    for key, values in axes.items():
        full = f"{prefix}{key}"
        if isinstance(values, Mapping):
            flat |= _flat(values, path, f"{full}.")
        elif isinstance(values, list) and values:
            flat[full] = values
        else:
            raise ConfigError(f"axes.{full} in {path}: expected a list of the values to compare, found {values!r}")
    return flat


def _leaf(nested: Mapping[str, Any]) -> tuple[str, Any]:
    """(dotted key, value) of what parse_override makes of one word."""
    (key, value), *_ = nested.items()
    while isinstance(value, Mapping) and len(value) == 1 and "name" not in value:
        (inner, value), *_ = value.items()
        key = f"{key}.{inner}"
    return key, value


def _check(name: str, arm: Arm, path: Path) -> None:
    if not re.fullmatch(r"\w[\w .+=,-]*", name) or name in FOLDERS:
        raise ConfigError(
            f"arms.{name} in {path}: a folder is called like the arm, so take letters, digits and . _ + = -, "
            f"and none of {', '.join(FOLDERS)}"
        )
    for key in arm.values:
        first = key.partition(".")[0]
        if first in SET_BY_THE_COMPARISON:
            hint = "; give `seeds` instead" if first == "seed" else ""
            raise ConfigError(f"{key} in {arm.said}: the comparison sets {first} itself{hint}")
