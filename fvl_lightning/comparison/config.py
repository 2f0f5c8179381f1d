"""What a comparison file can say, and the arms that it speaks of."""

from dataclasses import dataclass, field
from typing import Any, Literal

from fvl_lightning.core.atomic import check_folder_name
from fvl_lightning.core.config.field_types import PathText
from fvl_lightning.core.config.fields import MAX_SEED, number
from fvl_lightning.core.config.loading import AS_WRITTEN
from fvl_lightning.core.experiment import TrackingConfig
from fvl_lightning.launchers.ray import RayConfig


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


