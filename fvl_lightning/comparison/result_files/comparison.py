"""Types of comparison.json, the results of a whole comparison."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fvl_lightning.comparison.result_files.cell import DEFAULT_PRECISION, ArmResult
from fvl_lightning.comparison.result_files.record import FLAT, IF_FILLED, Record
from fvl_lightning.comparison.result_files.statistics import ComparisonStatistics
from fvl_lightning.comparison.result_files.tasks import TaskEvaluation
from fvl_lightning.comparison.scoring.names import is_task_score, score_of_split
from fvl_lightning.core.errors import DataError, first_line
from fvl_lightning.evaluation.metrics.base import AnswerMetric
from fvl_lightning.evaluation.metrics.lookup import metric_of, split_score


@dataclass
class SeedResult(Record):
    """An arm with one seed."""

    arm: str
    seed: int
    result: ArmResult = field(metadata=FLAT)


@dataclass
class EncoderEntry(Record):
    """The encoder that the arms share, averaged over seeds."""

    run: str
    """Run folder of the first seed's."""
    hash: str
    """Hash of the first seed's weights."""
    scores: dict[str, float]
    """{caption_tokens, words, boxes: score on the test split, from 0 to 1}."""
    seconds: float
    """Training time."""


@dataclass
class MlflowEntry(Record):
    """The place where the runs of a comparison are tracked."""

    run_id: str | None
    """The parent run; None where nothing is tracked."""
    experiment: str
    folder: str
    """The comparison's folder."""
    search: str
    """What MLflow's search box finds the cells by."""
    pages: dict[str, str] = field(default_factory=dict)
    """{what is shown: address of a page of MLflow}; those of an sqlite file are there while `fvl ui` runs."""


@dataclass
class ArmTuning(Record):
    """The learning rates that one arm tried."""

    scores: dict[str, float | None]
    """{factor: score on the validation split, averaged over tuning seeds}; None where a cell failed."""
    failed: dict[str, str]
    """{factor: why a cell failed}."""
    chosen: float
    """The factor with the best score."""
    edge: bool
    """Whether it is the smallest or the largest factor, so that a better one may lie beyond."""
    learning_rates: dict[str, float]
    """{stage: chosen learning rate}."""


@dataclass
class Tuning(Record):
    """The choice of the learning rates."""

    seeds: list[int]
    factors: list[float]
    metric: str
    """Full name of the score."""
    arms: dict[str, ArmTuning]


@dataclass
class RepeatedAccess(Record):
    """A cell that was scored on the test split more than once."""

    readings: int
    configurations: int
    """Different configurations among them."""


@dataclass
class EarlierReport(Record):
    """An earlier report of other cells."""

    time: str
    """ISO, UTC."""
    changed: list[str]
    """Cells that are new, gone or configured otherwise."""


@dataclass
class SplitAccess(Record):
    """Summary of the test-split access log; see split_readings.py."""

    first: str | None = None
    """ISO, UTC; None where nothing was scored, as below."""
    last: str | None = None
    readings: int = 0
    """Total over all cells."""
    again: dict[str, RepeatedAccess] = field(default_factory=dict)
    """{cell: how often}, of cells that were scored more than once."""
    others: list[str] = field(default_factory=list)
    """Folders of what was scored and does not belong to the comparison any more."""
    earlier: list[EarlierReport] = field(default_factory=list)


@dataclass
class PublishedScores(Record):
    """Published scores, shown beside those of the comparison."""

    source: str
    scores: dict[str, dict[str, float]]
    """{arm: {name of a score: number as published}}."""


@dataclass
class Comparison(Record):
    """comparison.json."""

    name: str
    level: str | None
    """Level of the data set; None where it has no levels."""
    seed: int
    """The first seed."""
    seeds: list[int]
    lineage: str
    """frozen_encoder, frozen_per_arm or end_to_end."""
    metric: str
    """Full name of the score that arms are compared by, such as accuracy/macro."""
    mlflow: MlflowEntry
    encoder: EncoderEntry | None
    """None where the arms share no encoder that was trained for the comparison."""
    machine: dict[str, Any]
    """processor, cores, python."""
    arms: dict[str, ArmResult]
    """Averages over seeds, in the order of the tables."""
    cells: list[SeedResult]
    differences: dict[str, dict[str, list[Any]]]
    """{arm: {key of the configuration: [value of the baseline, value of the arm]}}."""
    statistics: ComparisonStatistics
    tuning: Tuning | None = None
    """None where the learning rates were given."""
    questions: dict[str, int] = field(default_factory=dict)
    """{kind: number of its questions in the test split}; empty in files of earlier versions, as the two below."""
    sample_seeds: dict[str, int] = field(default_factory=dict)
    """{arm: the seed whose answers are on the sheet of samples}."""
    plugins: dict[str, str] = field(default_factory=dict)
    """{plugin: hash of its code}."""
    test_readings: SplitAccess = field(default_factory=SplitAccess)
    precision: str = DEFAULT_PRECISION
    """Precision in which the answers were generated; written only where it is not the default."""
    evaluation: TaskEvaluation | None = None
    """The tasks that the cells were scored on; written only where there are any."""
    reference: PublishedScores | None = field(default=None, metadata=IF_FILLED)
    """Published scores of the arms; no statistic uses them."""

    @property
    def tested(self) -> bool:
        """Returns whether the cells were scored on the split `test`."""
        return self.evaluation is None or self.evaluation.test_split

    @property
    def split_metric(self) -> str:
        """The registered name of the metric of the scores on the split `test`."""
        return split_score(score_of_split(self.metric))[0]

    @property
    def component(self) -> type[AnswerMetric]:
        """The class of the metric that the arms are compared by."""
        on_task = self.evaluation is not None and is_task_score(self.metric)
        return self.evaluation.metric(self.metric) if self.evaluation and on_task else metric_of(self.metric)

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and highest value of the score that the arms are compared by."""
        on_task = self.evaluation is not None and is_task_score(self.metric)
        if self.evaluation is not None and on_task:
            return self.evaluation.bounds(self.metric)
        return metric_of(self.metric).bounds_of(split_score(self.metric)[1])

    @property
    def metric_title(self) -> str:
        """The name of the score that the arms are compared by, in a report."""
        if self.evaluation is not None and is_task_score(self.metric):
            return self.evaluation.title(self.metric)
        return metric_of(self.metric).describe(split_score(self.metric)[1])

    def __repr__(self) -> str:
        return f"<comparison {self.name}: arms {', '.join(self.arms)}; seeds {', '.join(map(str, self.seeds))}>"

    def plain(self) -> dict[str, Any]:
        """Returns the plain form; what files of earlier versions lack is left out where it is empty."""
        new = ("questions", "sample_seeds", "plugins", "evaluation")
        plain = {key: value for key, value in super().plain().items() if value or key not in new}
        if self.precision == DEFAULT_PRECISION:
            del plain["precision"]
        if not self.mlflow.pages:
            del plain["mlflow"]["pages"]
        return plain


def read_comparison(folder: Path) -> Comparison:
    """Reads the results of a comparison from its folder.

    Raises:
        DataError: the folder is a run's, there is no comparison.json, or it is not one.
    """
    file = folder / "comparison.json"
    if not file.is_file() and (folder / "run.json").is_file():
        raise DataError(f"{folder} is a run, not the folder of a comparison; open_run and `fvl evaluate` take it")
    try:
        return Comparison.read(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError, DataError) as error:
        raise DataError(f"{file} cannot be read ({first_line(error)})") from None
    except (AttributeError, LookupError, TypeError):  # JSON of another form
        raise DataError(f"{file} is not the result of a comparison") from None
