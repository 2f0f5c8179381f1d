"""Schema of a comparison file."""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from fvl_lightning.core.atomic import check_folder_name
from fvl_lightning.core.config.addresses import refuse_login
from fvl_lightning.core.config.base_files import read_layers
from fvl_lightning.core.config.field_types import PathText
from fvl_lightning.core.config.fields import MAX_SEED, changes, number
from fvl_lightning.core.config.loading import AS_WRITTEN, as_plain
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import MARKS_OF_COMPARISONS, ExperimentConfig
from fvl_lightning.evaluation.metrics.lookup import DEFAULT_SCORE
from fvl_lightning.launchers.ray import RayConfig
from fvl_lightning.launchers.resources import ResourcesConfig


@dataclass
class ArmConfig:
    """One arm of a comparison."""

    set: list[str] = field(default_factory=list)
    """`key=value` overrides for the experiment of every stage, such as fusion=gated."""


@dataclass
class TuneConfig:
    """The learning rates that every arm tries before it is compared, scored on the validation split."""

    learning_rate_factors: list[float] = number(default_factory=list, above=0)
    """Factors of every stage's learning rates, such as [0.3, 1, 3]."""
    seeds: list[int] = number(default_factory=list, at_least=0, at_most=MAX_SEED)
    """Seeds to try them with; none may be among the reported seeds."""
    metric: str | None = None
    """Score to choose by, on the split `validation`; null for that of the comparison, which must then not be one of
    tasks."""

    def __post_init__(self) -> None:
        lists: dict[str, list[Any]] = {"learning_rate_factors": self.learning_rate_factors, "seeds": self.seeds}
        for name, values in lists.items():
            if not values or len(set(values)) < len(values):
                raise ValueError(f"tune.{name}: name at least one value, each once, not {values}")


@dataclass
class ScoringConfig:
    """The way in which trained models are scored; the same for all arms and for trials of learning rates."""

    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """32-true computes in the type of the weights, bf16-mixed in bfloat16, which is faster on a GPU and may give other
    answers."""


@dataclass
class EvaluateConfig:
    """The tasks that every cell is scored on after its training, besides the split `test`."""

    tasks: list[PathText] = field(default_factory=list)
    """Names of tasks of the kit (docs/evaluation.md), or files of tasks of your own, relative to this file."""
    limit: int | None = number(None, at_least=1)
    """How many questions of each task are asked, spread evenly over it, the same for every cell; null for all."""
    macro: dict[str, list[str]] = field(default_factory=dict)
    """Averages over tasks, each task with the same weight, such as {documents: [docvqa, chartqa]}."""
    correction: Literal["holm", "benjamini_hochberg"] = "holm"
    """How the scores beside `metric` are tested as one family. holm: any false claim is at most 5 % likely;
    benjamini_hochberg: at most 5 % of the claims are expected to be false."""
    pairs: Literal["baseline", "all"] = "baseline"
    """baseline: every arm is compared with the baseline; all: all pairs of arms are, also by `metric`."""

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("evaluate.tasks: name at least one task")


@dataclass
class ReferenceConfig:
    """Published scores, which the report shows beside its own; nothing is computed with them."""

    source: str = ""
    """Where they were published and with what, which the report writes below them."""
    scores: dict[str, dict[str, float]] = number(default_factory=dict, changes="nothing")
    """{arm: {name of a score: number as published}}. The names are not those of tasks only: an average may be among
    them, or a benchmark that the kit does not have."""

    def __post_init__(self) -> None:
        if self.scores and not self.source.strip():
            raise ValueError("reference.source: say where the scores were published")


@dataclass
class ComparisonTracking:
    """MLflow tracking of all runs of a comparison; what is null is taken from the last stage."""

    uri: str | None = None
    """Tracking store: sqlite:///<path>, or the address of a server, without a login."""
    experiment: str | None = None
    enabled: bool | None = None

    def __post_init__(self) -> None:
        if self.uri is not None:
            refuse_login(self.uri, "tracking.uri")


@dataclass
class ComparisonConfig:
    """Arms that differ only in the swept keys, each trained through the same stages with every seed."""

    name: str = "comparison"
    lineage: Literal["frozen_encoder", "frozen_per_arm", "end_to_end"] = "frozen_encoder"
    """frozen_encoder: all arms of a seed use one frozen encoder, trained without any of them; frozen_per_arm: every arm
    has a frozen encoder of its own, where encoders are what is compared; end_to_end: every arm trains its own."""
    encoder_stage: PathText = ""
    """Experiment file that trains the encoder of a seed for all its arms, relative to this file; empty where the
    encoder of the stages is `pretrained`, or that of the run in their `init_from`."""
    feature_cache: bool = True
    """With a frozen encoder, compute its features of every image once, for all arms, and keep them on the disk; false
    runs it at every step."""
    stages: list[PathText] = field(default_factory=list)
    """Experiment files that each arm trains, in order, relative to this file."""
    arms: dict[str, ArmConfig] = field(default_factory=dict)
    """The arms by name; alternatively `axes`."""
    axes: dict[str, Any] = field(default_factory=dict, metadata=AS_WRITTEN)
    """Keys of the experiments with the values to compare, such as {fusion: [concat, gated]}."""
    combine: Literal["grid", "zip"] = "grid"
    """grid: every combination of the axes' values is an arm; zip: their first values are one arm, their second ..."""
    swept: list[str] = field(default_factory=list)
    """Keys in which the arms may differ, such as fusion; empty for the axes' keys, or all keys that `arms` set."""
    match: Literal["natural", "parameters", "flops", "tokens"] = "natural"
    """natural: every arm keeps its size. tokens: every arm's projector gives the language model `image_tokens` of an
    image. Otherwise the hidden width of its projector is solved, to 1 %. parameters: fusion and projector together have
    as many as the baseline's; flops: a training sample takes as many operations of the whole model."""
    image_tokens: int | None = number(None, at_least=1)
    """Image tokens in the language model with `match: tokens`; null for those of the baseline."""
    tune: TuneConfig | None = None
    """Choice of every arm's learning rates before the comparison; null takes those of the experiment files."""
    baseline: str | None = None
    """The arm that the others are compared to; null for the first."""
    metric: str = DEFAULT_SCORE
    """Score that the arms are compared by, on the split `test`: a metric (`fvl list metric`) and its average, macro
    over kinds of question, or overall over questions. Or a score of what `evaluate` names: tasks/<task>,
    tasks/<task>/<number>, or macro/<name of an average>."""
    evaluate: EvaluateConfig | None = None
    """Tasks that every cell is scored on; null for none."""
    reference: ReferenceConfig | None = changes("nothing", None)
    """Published scores of the arms, for the report alone; null for none."""
    smallest_effect: float = number(0.02, above=0, at_most=1)
    """Smallest difference of the metric that matters; smaller ones count as equivalent."""
    set: list[str] = field(default_factory=list)
    """`key=value` overrides for every stage of every arm, and for the encoder's."""
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    unseen_splits: list[str] = field(default_factory=list)
    """Further test splits of the same data, scored in addition to `test`."""
    transfer_levels: list[str] = field(default_factory=list)
    """Further levels of the data set whose test split is scored, without training on them."""
    jobs: int = number(1, at_least=1)
    """Cells (an arm with a seed) that are trained at a time, each in processes of its own."""
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    launcher: Literal["local", "slurm", "ray"] = "local"
    """local: on this machine; slurm: as a job array, submitted with sbatch; ray: as tasks of Ray."""
    slurm: list[str] = field(default_factory=list)
    """sbatch options of the array, such as --partition=long."""
    ray: RayConfig = field(default_factory=RayConfig)
    tracking: ComparisonTracking = field(default_factory=ComparisonTracking)
    seed: int = number(0, at_least=0, at_most=MAX_SEED)
    """The only seed, where `seeds` is empty."""
    seeds: list[int] = number(default_factory=list, at_least=0, at_most=MAX_SEED)
    """Every arm is trained with each of these; nothing is tested with fewer than three seeds."""
    output: PathText = "runs"
    plugins: list[PathText] = field(default_factory=list)
    chosen: dict[str, str] = changes("nothing", default_factory=dict)
    """Record of the choices selected among the `variants` of this file, such as {scale: tiny}; every stage, which must
    offer them too, is loaded with the same ones."""

    @staticmethod
    def file_of_another_kind(keys: Iterable[str]) -> tuple[str, str] | None:
        """Returns a key that marks a file as an experiment, and what to do with such a file; None for a comparison."""
        own = set(keys)
        of_comparisons = {field.name for field in fields(ComparisonConfig)}
        marks = [field.name for field in fields(ExperimentConfig) if field.name in own - of_comparisons]
        advice = "this is an experiment file, which `fvl train` takes; a comparison file names it in `stages`"
        return (marks[0], advice) if marks and not own & set(MARKS_OF_COMPARISONS) else None

    @staticmethod
    def advice_for_unknown(key: str) -> str:
        """Returns how a key of the experiments is set, for the message that refuses it."""
        of_experiments = key in {field.name for field in fields(ExperimentConfig)}
        return f"`set` sets {key} in the experiments, as in set=trainer.max_steps=20" if of_experiments else ""

    def recorded(self) -> dict[str, Any]:
        """Returns the plain configuration, without later keys that are null, as earlier versions recorded it."""
        plain = as_plain(self)
        if plain["evaluate"] is None:
            del plain["evaluate"]
        for later in ("image_tokens", "reference"):
            if plain[later] is None:
                del plain[later]
        if plain["tune"] and plain["tune"]["metric"] is None:
            del plain["tune"]["metric"]
        return plain

    @property
    def overrides(self) -> list[str]:
        """The `key=value` overrides of every stage: the choices, then `set`."""
        return [*(f"{variant}={choice}" for variant, choice in self.chosen.items()), *self.set]

    def __post_init__(self) -> None:
        check_folder_name(self.name, "name")
        self.seeds = self.seeds or [self.seed]
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: one is named twice in {', '.join(map(str, self.seeds))}")
        if self.image_tokens is not None and self.match != "tokens":
            raise ValueError(f"image_tokens: only `match: tokens` sets them, and match is {self.match}")
        if self.tune and (shared := set(self.seeds) & set(self.tune.seeds)):
            raise ValueError(
                f"tune.seeds: {min(shared)} is one of `seeds` too; learning rates are chosen with seeds of their own"
            )


def is_comparison_file(path: Path) -> bool:
    """Returns whether a YAML file or one of its bases has the keys of a comparison; False where it cannot be read."""
    try:
        return any(mark in layer for _, layer in read_layers(path) for mark in MARKS_OF_COMPARISONS)
    except ConfigError:
        return False
