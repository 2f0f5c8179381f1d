"""The tasks of a comparison with their questions, and the scores that they give."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvl_lightning.comparison.arms import written_at
from fvl_lightning.comparison.config import ComparisonConfig, EvaluateConfig
from fvl_lightning.comparison.result_files.tasks import TaskEntry, TaskEvaluation, TaskSpec
from fvl_lightning.comparison.scoring.names import MACRO, is_task_score, task_score
from fvl_lightning.core import registry
from fvl_lightning.core.config.loading import as_plain
from fvl_lightning.core.errors import ConfigError, UserError, unknown_name
from fvl_lightning.evaluation.metrics.base import AnswerMetric
from fvl_lightning.evaluation.metrics.lookup import metric_of
from fvl_lightning.evaluation.task_rows.questions import read_questions
from fvl_lightning.evaluation.tasks.config import TaskConfig
from fvl_lightning.evaluation.tasks.lookup import find_task
from fvl_lightning.evaluation.tasks.question import QuestionSet
from fvl_lightning.evaluation.tasks.score import primary_of

NOT_SCORED = (
    "data", "lmms_eval", "name", "paraphrases", "primary", "published", "scale", "source", "title", "validation"
)  # fmt: skip
"""Keys of a task's file that change neither answers nor scores; the data is covered by the questions' hash."""


@dataclass(frozen=True)
class NamedTask:
    """A task of a comparison."""

    reference: str
    """Its name in the catalog, or its file."""
    config: TaskConfig

    @property
    def name(self) -> str:
        """Name in scores and files."""
        return self.config.name

    @property
    def metric(self) -> str:
        """Registered name of its metric."""
        return str(self.config.metric["name"])

    @property
    def primary(self) -> str:
        """The number that stands for it."""
        return primary_of(self.config)

    @property
    def component(self) -> type[AnswerMetric]:
        """The class of its metric; ConfigError where it has no such number."""
        found: type[AnswerMetric] = registry.component("metric", self.metric, f"metric of task {self.reference}")
        if self.primary not in found.averages:
            raise unknown_name("number", self.primary, found.averages, f"primary of task {self.reference}")
        return found

    @property
    def asked(self) -> dict[str, Any]:
        """The parts of its file that change scores."""
        return {key: value for key, value in as_plain(self.config).items() if key not in NOT_SCORED}


def named_task(reference: str, base: Path = Path()) -> NamedTask:
    """Returns a task by its name in the catalog, or by its file relative to `base`.

    Raises:
        ConfigError: there is no such task, its file has a mistake, or there is no such metric.
    """
    is_file = reference.endswith((".yaml", ".yml")) or os.sep in reference
    reference = str(base / reference) if is_file else reference
    task = NamedTask(reference, find_task(reference))
    assert task.component
    return task


def named_tasks(config: ComparisonConfig, path: Path) -> dict[str, NamedTask]:
    """Returns {name: task} of the tasks that a comparison names, in order; none where it has no `evaluate`.

    Args:
        config: the comparison.
        path: its file.

    Raises:
        ConfigError: as named_task, or two tasks have one name.
    """
    tasks: dict[str, NamedTask] = {}
    for reference in config.evaluate.tasks if config.evaluate else ():
        where = written_at(config, "evaluate.tasks", path)
        try:
            task = named_task(reference, path.parent)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        if task.name in tasks:
            raise ConfigError(f"{where}: two tasks are named {task.name}; give one of their files another `name`")
        tasks[task.name] = task
    return tasks


def resolve_metric(config: ComparisonConfig, path: Path, tasks: Mapping[str, NamedTask]) -> str:
    """Returns the full name of the score that the arms are compared by: tasks/pope becomes tasks/pope/f1.

    Raises:
        ConfigError: no such metric, number, task or average, or the scores of an average have no common scale.
    """
    where = written_at(config, "metric", path)
    _check_macro(config.evaluate, tasks, written_at(config, "evaluate.macro", path))
    if not is_task_score(config.metric):
        metric_of(config.metric, where)
        return config.metric
    if config.evaluate is None:
        raise ConfigError(f"{where}: {config.metric} is a score of tasks, and `evaluate` names no tasks")
    if config.tune is not None and config.tune.metric is None:
        raise ConfigError(
            f"{written_at(config, 'tune', path)}: learning rates are chosen on the split validation, and "
            f"{config.metric} is a score of tasks; name the score to choose by as tune.metric, such as accuracy/macro"
        )
    kind, _, name = config.metric.partition("/")
    if kind == MACRO:
        if name not in config.evaluate.macro:
            raise unknown_name("average over tasks", name, config.evaluate.macro, where)
        return config.metric
    task, _, number = name.partition("/")
    if task not in tasks:
        raise unknown_name("task", task, tasks, where)
    numbers = tasks[task].component.averages
    number = number or tasks[task].primary
    if number not in numbers:
        raise unknown_name("score", config.metric, [task_score(task, one) for one in numbers], where)
    return task_score(task, number)


def _check_macro(evaluate: EvaluateConfig | None, tasks: Mapping[str, NamedTask], where: str) -> None:
    """Raises ConfigError for an average over too few or unknown tasks, or over scores that have no common scale."""
    for name, members in (evaluate.macro if evaluate else {}).items():
        key = where.replace("evaluate.macro", f"evaluate.macro.{name}", 1)
        if "/" in name or len(members) < 2 or len(set(members)) < len(members):
            raise ConfigError(f"{key}: an average needs a name without / and at least two tasks, each once: {members}")
        for task in members:
            if task not in tasks:
                raise unknown_name("task", task, tasks, key)
        first = tasks[members[0]]
        for other in (tasks[task] for task in members[1:]):
            if _scale(first) != _scale(other):
                raise ConfigError(
                    f"{key}: {first.name} and {other.name} have no common scale ({_scale(first)}; {_scale(other)}), so "
                    "they cannot be averaged"
                )


def _scale(task: NamedTask) -> str:
    low, high = task.component.bounds_of(task.primary)
    return f"{low:g} to {high:g}, {'higher' if task.component.higher_is_better else 'lower'} is better"


@dataclass(frozen=True)
class AskedTasks:
    """The tasks of a comparison with the questions that every cell is asked."""

    tasks: Mapping[str, NamedTask]
    questions: Mapping[str, QuestionSet]
    """{task: the questions that are asked}."""
    specs: Mapping[str, TaskSpec]
    """{task: what a cell is asked}."""

    def evaluation(self, config: EvaluateConfig, test_split: bool) -> TaskEvaluation:
        """Returns the description of the tasks for a report."""
        return TaskEvaluation(
            tasks={name: self._entry(name) for name in self.tasks},
            macro=config.macro,
            correction=config.correction,
            pairs=config.pairs,
            test_split=test_split,
        )

    def _entry(self, name: str) -> TaskEntry:
        task, questions = self.tasks[name], self.questions[name].questions
        return TaskEntry(
            title=task.config.title,
            metric=task.metric,
            primary=task.primary,
            identity=self.specs[name].identity,
            questions=len(questions),
            clusters=len({question.cluster or question.id for question in questions}),
            kinds=len({question.kind for question in questions}),
            options={key: value for key, value in as_plain(task.config)["metric"].items() if key != "name"},
        )


def ask_tasks(tasks: Mapping[str, NamedTask], limit: int | None, where: str = "evaluate.limit") -> AskedTasks:
    """Reads the questions that every cell is asked: all of a task, or `limit` of them, spread evenly.

    Raises:
        ConfigError: a task's rows lack a field, or it has fewer questions than `limit`; all problems in one sentence.
        DataError: the rows or images of a task cannot be read.
    """
    questions: dict[str, QuestionSet] = {}
    errors: list[UserError] = []
    for name, task in tasks.items():
        try:
            questions[name] = read_asked(task, limit)
        except UserError as error:
            errors.append(type(error)(f"task {name}: {error}"))
            continue
        asked = len(questions[name].questions)
        if limit is not None and asked < limit and not task.config.fields.group:
            errors.append(
                ConfigError(f"{where}: {limit} questions of each task, and {name} has {asked}; take at most {asked}")
            )
    if errors:
        kind = ConfigError if any(isinstance(error, ConfigError) for error in errors) else type(errors[0])
        raise kind("; ".join(map(str, errors)))
    specs = {
        name: TaskSpec(task.reference, questions[name].identity, limit, task.asked) for name, task in tasks.items()
    }
    return AskedTasks(tasks, questions, specs)


def read_asked(task: NamedTask, limit: int | None) -> QuestionSet:
    """Reads the questions of a task that are asked; the same for every cell."""
    return read_questions(task.config, limit)


def in_words(names: Iterable[str], asked: AskedTasks) -> str:
    """Returns a phrase with the number of questions of each task."""
    return ", ".join(f"{len(asked.questions[name].questions):,} questions of {name}" for name in names)
