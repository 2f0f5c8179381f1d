"""Types of what a comparison scores on tasks, in its files; scoring/names.py has the names of these scores."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fvl_lightning.comparison.result_files.record import IF_FILLED, Record
from fvl_lightning.comparison.scoring.names import is_average, macro_score, split_task_score, task_score
from fvl_lightning.core import registry
from fvl_lightning.core.config.loading import choose
from fvl_lightning.evaluation.metrics.base import AnswerMetric, KindScores


@dataclass
class TaskSpec(Record):
    """A task that a cell is scored on."""

    task: str
    """Its name in the catalog, or its file."""
    identity: str
    """Hash of the questions that are asked."""
    limit: int | None
    """How many questions are asked, spread evenly over the task; None for all."""
    asked: dict[str, Any]
    """The parts of the task's file that change scores: metric, fields, prompt and answer."""


@dataclass
class TaskScores(Record):
    """Scores of a trained model on a task."""

    identity: str
    """Hash of the questions; scores are compared only where it is equal."""
    scores: KindScores


@dataclass
class TaskEntry(Record):
    """A task in a report."""

    title: str
    metric: str
    """Registered name of the metric."""
    primary: str
    """The number that stands for the task, such as macro or f1."""
    identity: str
    questions: int
    """Questions that are asked."""
    clusters: int
    """Groups of questions that are drawn together, such as those about one image."""
    options: dict[str, Any] = field(default_factory=dict, metadata=IF_FILLED)
    """Options of the metric."""
    kinds: int = field(default=0, metadata=IF_FILLED)
    """Kinds of question; 0 in files of earlier versions."""

    @property
    def component(self) -> type[AnswerMetric]:
        """The class of the metric."""
        return registry.component("metric", self.metric)

    def build(self, kinds: set[str]) -> AnswerMetric:
        """Builds the metric with its options, for questions of these kinds."""
        choice = choose("metric", {"name": self.metric, **self.options}, "metric")
        metric: AnswerMetric = choice.component(choice.config, kinds)
        return metric


@dataclass
class TaskEvaluation(Record):
    """The tasks of a comparison, and how their scores are tested."""

    tasks: dict[str, TaskEntry]
    macro: dict[str, list[str]]
    """{average: its tasks}."""
    correction: str
    """holm or benjamini_hochberg."""
    pairs: str
    """baseline or all."""
    test_split: bool = True
    """Whether the split `test` was scored too."""

    def scores(self) -> list[str]:
        """Returns the names of the primary number of every task, and of every average."""
        tasks = [task_score(name, task.primary) for name, task in self.tasks.items()]
        return [*tasks, *map(macro_score, self.macro)]

    def task_of(self, score: str) -> str:
        """Returns the task of a score; of an average its first task, whose metric has the same direction and bounds."""
        name, _ = split_task_score(score)
        return self.macro[name][0] if is_average(score) else name

    def metric(self, score: str) -> type[AnswerMetric]:
        """Returns the class of the metric that gives a score its direction and bounds."""
        return self.tasks[self.task_of(score)].component

    def bounds(self, score: str) -> tuple[float, float]:
        """Returns the lowest and highest value of a score."""
        task = self.task_of(score)
        return self.metric(score).bounds_of(split_task_score(score)[1] or self.tasks[task].primary)

    def title(self, score: str) -> str:
        """Returns what a report calls a score."""
        name, number = split_task_score(score)
        if is_average(score):
            return f"{name}, average of {', '.join(self.tasks[task].title for task in self.macro[name])}"
        return f"{self.tasks[name].title}, {self.metric(score).describe(number, self.tasks[name].kinds)}"

    def short_title(self, score: str) -> str:
        """Returns what a table or a panel calls a score that stands for its task, or an average."""
        name, _ = split_task_score(score)
        return name if is_average(score) else self.tasks[name].title

    def metric_of_cells(self, score: str) -> str:
        """Returns the metric that every cell's MLflow run has, by which MLflow's search and charts find a score.

        Cells that were scored before an average was named have none of it, but its first task.
        """
        if not is_average(score):
            return score
        task = self.task_of(score)
        return task_score(task, self.tasks[task].primary)


def score_of(score: str, tasks: Mapping[str, TaskScores], macro: Mapping[str, float]) -> float:
    """Returns the number of a trained model that the name of a task's score, or of an average, stands for."""
    name, number = split_task_score(score)
    return macro[name] if is_average(score) else tasks[name].scores.average(number)


def averages_of(
    macro: Mapping[str, list[str]], primary: Mapping[str, str], tasks: Mapping[str, TaskScores]
) -> dict[str, float]:
    """Returns {average: mean of the primary numbers of its tasks}, each task with the same weight.

    Args:
        macro: {average: its tasks}.
        primary: {task: its primary number}.
        tasks: {task: scores}.
    """
    return {
        name: sum(tasks[task].scores.average(primary[task]) for task in members) / len(members)
        for name, members in macro.items()
    }
