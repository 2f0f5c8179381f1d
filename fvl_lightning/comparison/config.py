"""What a comparison file can say, and the arms that it speaks of."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fvl_lightning.core.atomic import check_folder_name
from fvl_lightning.core.config.field_types import PathText
from fvl_lightning.core.config.fields import MAX_SEED, number
from fvl_lightning.core.config.loading import AS_WRITTEN, override, parse_override
from fvl_lightning.core.config.yaml_text import plain
from fvl_lightning.core.errors import ConfigError, unknown_name
from fvl_lightning.core.experiment import TrackingConfig

SET_BY_THE_COMPARISON = ("name", "seed", "output", "tracking", "init_from", "feature_cache", "plugins")
"""Keys of an experiment that no arm may have of its own."""
TOLD_APART = 10
"""Interfaces cut names; those of arms differ in as many characters."""
TUNING = "tuning"
"""The folder of what is trained to choose learning rates."""
FOLDERS = ("encoders", "feature_cache", TUNING)
"""What lies beside the arms' folders."""


@dataclass
class ArmConfig:
    """One arm of a comparison: the words it adds to every stage's experiment."""

    set: list[str] = field(default_factory=list)
    """`key=value` words, such as fusion=gated."""


@dataclass
class TuneConfig:
    """The learning rates that every arm tries before it is compared, on the validation split alone."""

    learning_rate_factors: list[float] = number(default_factory=list, above=0)
    """Every stage's learning rates times each of these, such as [0.3, 1, 3]."""
    seeds: list[int] = number(default_factory=list, at_least=0, at_most=MAX_SEED)
    """Seeds to try them with, none of them among those that are reported."""

    def __post_init__(self) -> None:
        named: dict[str, list[Any]] = {"learning_rate_factors": self.learning_rate_factors, "seeds": self.seeds}
        for name, values in named.items():
            if not values or len(set(values)) < len(values):
                raise ValueError(f"tune.{name}: name some, each once, not {values}")


@dataclass
class RayConfig:
    """Where `launcher: ray` finds its machines, and what a cell has of them besides a core."""

    address: str = "local"
    """local: this machine alone; auto: the cluster that this machine is part of; or host:port of one."""
    num_gpus: float = number(0.0, at_least=0)
    """GPUs for every cell; 0.5 shares one between two."""


@dataclass
class ComparisonConfig:
    """Arms that differ only in the swept keys, each trained through the same stages with every seed."""

    name: str = "comparison"
    lineage: Literal["frozen_encoder", "end_to_end"] = "frozen_encoder"
    """frozen_encoder: all arms of a seed stand on one encoder, trained without any of them; end_to_end: every arm
    trains its own."""
    encoder_stage: PathText = ""
    """Experiment file that trains the encoder of a seed for all its arms, relative to this file; none where the stages'
    own encoder is `pretrained`."""
    stages: list[PathText] = field(default_factory=list)
    """Experiment files each arm goes through, in order, relative to this file."""
    arms: dict[str, ArmConfig] = field(default_factory=dict)
    """The arms by name; or give `axes`."""
    axes: dict[str, Any] = field(default_factory=dict, metadata=AS_WRITTEN)
    """Keys of the experiments with the values to compare, such as {fusion: [concat, gated]}."""
    combine: Literal["grid", "zip"] = "grid"
    """grid: every combination of the axes' values is an arm; zip: their first values are one, their second, ..."""
    swept: list[str] = field(default_factory=list)
    """The keys in which the arms may differ, such as fusion; empty for the axes' keys, or all that `arms` set."""
    match: Literal["natural", "parameters", "flops"] = "natural"
    """natural: every arm has the size it has; else the hidden width of its projector is solved, to 1 %: parameters, so
    that fusion and projector together have as many as the baseline's; flops, so that a training sample takes as many
    operations of the whole model."""
    tune: TuneConfig | None = None
    """Chooses every arm's learning rates first; null takes those of the experiment files."""
    baseline: str | None = None
    """The arm that the others are compared to; null for the first."""
    metric: Literal["accuracy/macro", "accuracy/overall"] = "accuracy/macro"
    """What is compared, on the split `test`: the average over kinds of question, or over questions."""
    smallest_effect: float = number(0.02, above=0, at_most=1)
    """The smallest difference of the metric that matters; smaller ones count as equivalence."""
    set: list[str] = field(default_factory=list)
    """`key=value` words for every stage of every arm, the encoder's too."""
    unseen_splits: list[str] = field(default_factory=list)
    """Further test splits of the same data, scored beside `test`."""
    transfer_levels: list[str] = field(default_factory=list)
    """Further demo levels whose test split is scored beside the one trained on, without training on them."""
    jobs: int = number(1, at_least=1)
    """Cells (an arm with a seed) trained at a time, each in a process of its own with one thread."""
    launcher: Literal["local", "slurm", "ray"] = "local"
    """local: on this machine; slurm: as a job array, submitted with sbatch and waited for; ray: as tasks of Ray."""
    slurm: list[str] = field(default_factory=list)
    """Options of sbatch for the array, such as --partition=long."""
    ray: RayConfig = field(default_factory=RayConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    seed: int = number(0, at_least=0, at_most=MAX_SEED)
    """The one seed, where `seeds` names none."""
    seeds: list[int] = number(default_factory=list, at_least=0, at_most=MAX_SEED)
    """Every arm is trained with each of these; nothing is tested with fewer than three."""
    output: PathText = "runs"
    plugins: list[PathText] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_folder_name(self.name, "name")
        self.seeds = self.seeds or [self.seed]
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: one is named twice in {', '.join(map(str, self.seeds))}")
        if self.tune and (shared := set(self.seeds) & set(self.tune.seeds)):
            raise ValueError(
                f"tune.seeds: {min(shared)} is one of `seeds` too; learning rates are chosen with seeds of their own"
            )


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
    return _told_apart(arms)


def _told_apart(arms: Mapping[str, Arm]) -> dict[str, Arm]:
    """The same arms, numbered where their names begin alike."""
    if len({name[:TOLD_APART] for name in arms}) == len(arms):
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
