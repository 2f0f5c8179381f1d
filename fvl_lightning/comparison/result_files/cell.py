"""Types of a cell's files: cell.json specifies what to train and score, result.json has the measurements."""

from dataclasses import dataclass, field, fields
from math import nan
from typing import Any

from fvl_lightning.comparison.result_files.record import FLAT, IF_FILLED, Record
from fvl_lightning.comparison.result_files.tasks import TaskScores, TaskSpec, score_of
from fvl_lightning.comparison.scoring.names import is_task_score
from fvl_lightning.evaluation.metrics.base import KindScores
from fvl_lightning.evaluation.metrics.lookup import DEFAULT_METRIC, split_score
from fvl_lightning.launchers.resources import ResourcesConfig

DEFAULT_PRECISION = "32-true"
"""Precision of scoring where a comparison asks for none; a file without the key means it."""


@dataclass
class CellInputs(Record):
    """Code and data that a result comes from: if they change under the same names, the cell is run again."""

    inputs: list[dict[str, str]]
    """{plugin or folder that it reads: hash} of every stage."""
    data: list[str]
    """Hash of the data's content, of every stage."""


@dataclass(kw_only=True)
class CellSpec(Record):
    """Training and scoring that the process of a cell does: cell.json without `cell`, the key that names the result."""

    stages: list[dict[str, Any]]
    """Plain experiments, in order, as their files ask for them; they are trained on the devices of `resources`."""
    encoder_run: str | None = None
    """Folder of the encoder run that the arms share; None where the arms' own encoder is taken, as below."""
    encoder_hash: str | None = None
    """Hash of the shared encoder's weights."""
    unseen_splits: list[str] = field(default_factory=list)
    """Further test splits to score."""
    transfer_levels: list[str] = field(default_factory=list)
    """Further levels of the data set whose test split is scored."""
    parent_run_id: str | None = None
    """MLflow run of the comparison."""
    tags: dict[str, str] = field(default_factory=dict)
    """Tags of the MLflow runs."""
    fresh: bool = False
    """Whether to train again what was trained before."""
    split: str = "test"
    """The split to score on; any other than `test` is for choosing learning rates."""
    made_of: CellInputs = field(default_factory=lambda: CellInputs([], []))
    metric: str = DEFAULT_METRIC
    """Registered name of the metric; written only where it is not the default."""
    precision: str = DEFAULT_PRECISION
    """Precision of scoring, as `metric`."""
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    """Devices, cores and memory of the cell; written only where they are not the default."""
    tasks: dict[str, TaskSpec] = field(default_factory=dict, metadata=IF_FILLED)
    """{task: what is asked} of the tasks that the model is scored on."""
    macro: dict[str, list[str]] = field(default_factory=dict, metadata=IF_FILLED)
    """{average over tasks: its tasks}."""
    test_questions: bool = True
    """Whether the split is scored; False for data without questions, and written only then."""

    def plain(self) -> dict[str, Any]:
        """Returns the plain form, without later fields at their default: an earlier version's key names the result."""
        later: dict[str, Any] = {"metric": DEFAULT_METRIC, "precision": DEFAULT_PRECISION, "test_questions": True}
        later["resources"] = vars(ResourcesConfig())
        return {key: value for key, value in super().plain().items() if key not in later or value != later[key]}


@dataclass(kw_only=True)
class Measurements(Record):
    """Scores and costs of a trained model."""

    scores: dict[str, KindScores] = field(metadata=FLAT)
    """{metric: scores on the test split}; each is written under the name of its metric."""
    image_zeroed: KindScores
    """Scores without the image: all its pixels are zero."""
    image_shuffled: KindScores
    """Scores with the image of another sample."""
    prior: KindScores
    """Scores of the most frequent training answer of each kind."""
    unseen: dict[str, KindScores] = field(default_factory=dict)
    """{further test split: scores}."""
    transfer: dict[str, KindScores] = field(default_factory=dict)
    """{level that was not trained on: scores on its test split}."""
    image_tokens: float
    """Tokens per image in the language model."""
    inference_flops: float
    """Floating-point operations per question, up to the first token of the answer."""
    training_flops: float
    """Floating-point operations per training sample, forward and backward."""
    parameters: float
    trainable: float
    """Parameters that the last stage trains."""
    tokens_per_second: float
    """Training speed of the last stage."""
    peak_memory_bytes: float
    """Highest of all stages."""
    seconds: float
    """Training time of all stages."""
    mass: dict[str, float] = field(default_factory=dict)
    """{source: its last source weight, from 0 to 1}; empty for a fusion that reports none."""
    tasks: dict[str, TaskScores] = field(default_factory=dict, metadata=IF_FILLED)
    """{task: scores}."""
    macro: dict[str, float] = field(default_factory=dict, metadata=IF_FILLED)
    """{average over tasks: score}."""

    def score(self, score: str) -> float:
        """Returns the number that a name such as accuracy/macro or tasks/pope/f1 stands for."""
        if is_task_score(score):
            return score_of(score, self.tasks, self.macro)
        metric, average = split_score(score)
        return self.scores[metric].average(average)


@dataclass
class AnswerRow(Record):
    """One question of the test split and its generated answer."""

    index: int
    """Number of the image's sample in the split."""
    kind: str
    question: str
    truth: str
    answer: str


@dataclass(kw_only=True)
class CellResult(Measurements):
    """result.json of a cell that was scored on the test split."""

    cell: str
    """The key of the specification that the result belongs to."""
    encoder_hash: str
    initial: dict[str, tuple[list[int], str]]
    """{parameter: (shape, hash of its initial values)} of the last stage, before any run is loaded into it."""
    runs: dict[str, str]
    """{stage: run folder}."""
    answers: list[AnswerRow]
    precision: str = DEFAULT_PRECISION
    """Precision of scoring; written only where it is not the default."""

    def plain(self) -> dict[str, Any]:
        """Returns the plain form, without the default precision, as in files of earlier versions."""
        default = ("precision", DEFAULT_PRECISION)
        return dict(item for item in super().plain().items() if item != default)

    def for_report(self, same_start: float) -> "ArmResult":
        """Returns the part that a report shows."""
        measured = {part.name: getattr(self, part.name) for part in fields(Measurements)}
        return ArmResult(**measured, encoder_hash=self.encoder_hash, runs=self.runs, same_start=same_start)


@dataclass
class TrialResult(Record):
    """result.json of a cell that only tries learning rates, on another split than the test split."""

    scores: dict[str, KindScores] = field(metadata=FLAT)
    cell: str

    def score(self, score: str) -> float:
        """Returns the number that a name such as accuracy/macro stands for."""
        metric, average = split_score(score)
        return self.scores[metric].average(average)


@dataclass
class Failure(Record):
    """failure.json: why the process of a cell failed."""

    cell: str
    words: str
    """Last line of its log."""
    code: int | None
    """Exit code; negative for a signal."""


@dataclass(kw_only=True)
class ArmResult(Measurements):
    """An arm, averaged over its seeds; texts are those of its first seed."""

    encoder_hash: str = ""
    runs: dict[str, str] = field(default_factory=dict)
    """{stage: run folder}."""
    same_start: float = nan
    """Fraction of the parameters that started with the baseline's values."""
