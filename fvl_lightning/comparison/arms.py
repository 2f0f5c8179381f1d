"""The arms of a comparison, named in `arms` or made from `axes`."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.core.config.base_files import in_file
from fvl_lightning.core.config.merging import override, parse_override
from fvl_lightning.core.config.places import origin_of
from fvl_lightning.core.config.yaml_text import plain
from fvl_lightning.core.errors import ConfigError, unknown_name

SET_BY_THE_COMPARISON = ("name", "seed", "output", "tracking", "init_from", "feature_cache", "plugins")
"""Keys of an experiment that no arm may set."""
DISTINCT_CHARACTERS = 10
"""User interfaces truncate names, so arm names must differ in their first characters."""
TUNING_FOLDER = "tuning"
"""Folder of the trials that choose learning rates."""
FEATURE_CACHE = "feature_cache"
"""Folder of the cached features of frozen encoders."""
FOLDERS = ("encoders", FEATURE_CACHE, TUNING_FOLDER)
"""Further folders next to those of the arms."""


@dataclass(frozen=True)
class Arm:
    """An arm, and the place in the file that defines it."""

    overrides: tuple[str, ...]
    """`key=value`, for the experiment of every stage."""
    origin: str
    """Place of the overrides, for messages."""
    values: Mapping[str, Any]
    """{key: value} that the overrides set."""


def written_at(config: ComparisonConfig, key: str, path: Path) -> str:
    """Returns a key with the place where it was written: the comparison's file or the command line."""
    return key + in_file(origin_of(config, key, str(path)))


def arms_of(config: ComparisonConfig, path: Path) -> dict[str, Arm]:
    """Returns the arms of the comparison by name, in order.

    Args:
        config: the comparison.
        path: its file, for messages.

    Raises:
        ConfigError: there are neither arms nor axes, or both; axes do not fit each other; a name or key cannot be
            used; or the baseline is not an arm.
    """
    if bool(config.arms) == bool(config.axes):
        given = "both, and" if config.arms else "neither, and"
        raise ConfigError(f"arms and axes in {path}: there are {given} a comparison needs exactly one of the two")
    if config.axes:
        arms = _crossed(_flat(config.axes, path), config.combine, written_at(config, "axes", path))
    else:
        arms = {}
        for name, written in config.arms.items():
            origin = written_at(config, f"arms.{name}.set", path)
            values = dict(_leaf(parse_override(text, origin)) for text in written.set)
            arms[name] = Arm(tuple(written.set), origin, values)
    for name in arms:
        _check(name, arms[name], path)
    if config.baseline is not None and config.baseline not in arms:
        raise unknown_name("arm", config.baseline, arms, written_at(config, "baseline", path))
    for name in config.reference.scores if config.reference else ():
        if name not in arms:
            raise unknown_name("arm", name, arms, written_at(config, "reference.scores", path))
    return arms


def _crossed(axes: Mapping[str, Sequence[Any]], combine: str, origin: str) -> dict[str, Arm]:
    lengths = {key: len(values) for key, values in axes.items()}
    if combine == "zip" and len(set(lengths.values())) > 1:
        counts = ", ".join(f"{key} has {number}" for key, number in lengths.items())
        raise ConfigError(f"{origin}: `combine: zip` needs the same number of values of every axis, but {counts}")
    combined = zip(*axes.values(), strict=True) if combine == "zip" else itertools.product(*axes.values())
    arms: dict[str, Arm] = {}
    for chosen in combined:
        values = dict(zip(axes, chosen, strict=True))
        overrides = tuple(override(key, value) for key, value in values.items())
        values = {key: plain(value) for key, value in values.items()}
        name = "-".join(_label(key, value) for key, value in values.items())
        if name in arms:
            raise ConfigError(f"{origin}: duplicate arm name {name}, an axis lists a value twice")
        arms[name] = Arm(overrides, origin, values)
    return _distinct_names(arms)


def _distinct_names(arms: Mapping[str, Arm]) -> dict[str, Arm]:
    """Returns the same arms, with numbered names where the first characters of names are equal."""
    if len({name[:DISTINCT_CHARACTERS] for name in arms}) == len(arms):
        return dict(arms)
    width = len(str(len(arms)))
    return {f"{number:0{width}}-{name}": arm for number, (name, arm) in enumerate(arms.items(), start=1)}


def _label(key: str, value: Any) -> str:
    """Returns a value as a part of an arm's name and folder: gated, davit+ocr, learning_rate_0.003."""
    if isinstance(value, Mapping):
        rest = [_label(inner, entry) for inner, entry in value.items() if inner != "name"]
        text = "_".join([str(value.get("name", "")), *rest]).strip("_")
    elif isinstance(value, list):
        text = "+".join(map(str, value))
    elif isinstance(value, str):
        text = value
    else:
        text = f"{key.rpartition('.')[2]}_{json.dumps(value)}"
    return re.sub(r"[^\w.+=]+", "_", text) or "empty"


def _flat(axes: Mapping[str, Any], path: Path, prefix: str = "") -> dict[str, list[Any]]:
    """Returns {dotted key: values}; an axis may be written with dots or as nested keys."""
    flat: dict[str, list[Any]] = {}
    for key, values in axes.items():
        full = f"{prefix}{key}"
        if isinstance(values, Mapping):
            flat |= _flat(values, path, f"{full}.")
        elif isinstance(values, list) and values:
            flat[full] = values
        else:
            raise ConfigError(f"axes.{full} in {path}: expected a list of values to compare, found {values!r}")
    return flat


def _leaf(nested: Mapping[str, Any]) -> tuple[str, Any]:
    """Returns (dotted key, value) of one parsed override."""
    (key, value), *_ = nested.items()
    while isinstance(value, Mapping) and len(value) == 1 and "name" not in value:
        (inner, value), *_ = value.items()
        key = f"{key}.{inner}"
    return key, value


def _check(name: str, arm: Arm, path: Path) -> None:
    if not re.fullmatch(r"\w[\w .+=,-]*", name) or name in FOLDERS:
        raise ConfigError(
            f"arms.{name} in {path}: the name is also the name of a folder, so use letters, digits and . _ + = -, "
            f"and none of {', '.join(FOLDERS)}"
        )
    for key in arm.values:
        first = key.partition(".")[0]
        if first in SET_BY_THE_COMPARISON:
            hint = "; give `seeds` instead" if first == "seed" else ""
            raise ConfigError(f"{key} in {arm.origin}: the comparison sets {first} itself{hint}")
