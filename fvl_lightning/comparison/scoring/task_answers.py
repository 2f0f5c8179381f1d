"""Scores the trained model of a cell on the comparison's tasks, and keeps every answer in the cell's folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, cast

from datamodules.encoding.question_form import QuestionForm
from fvl_lightning.comparison.result_files.cell import CellSpec
from fvl_lightning.comparison.result_files.tasks import TaskScores, TaskSpec, averages_of
from fvl_lightning.comparison.scoring.names import MACRO, TASKS
from fvl_lightning.comparison.scoring.tasks import named_task, read_asked
from fvl_lightning.core.errors import DataError, UserError
from fvl_lightning.evaluation.answers import Scoring
from fvl_lightning.evaluation.batched_answers import Asking
from fvl_lightning.evaluation.metrics.averages import OVER_KINDS, OVER_QUESTIONS
from fvl_lightning.evaluation.tasks.config import TaskConfig
from fvl_lightning.evaluation.tasks.question import QuestionSet
from fvl_lightning.evaluation.tasks.result import TaskResult, TaskSample
from fvl_lightning.evaluation.tasks.samples import read_samples, write_samples
from fvl_lightning.evaluation.tasks.score import score_task
from fvl_lightning.modeling.build import LoadedModel
from fvl_lightning.training.distributed.process_group import Ranks

SAMPLES = "samples-{task}.jsonl"
"""File in a cell's folder with its answers to the questions of a task."""
BY = "by "
"""Beginning of the columns with a question's slices, in the table of answers in MLflow."""
PROMPTS = 8
"""Questions over which the tokens of a prompt are averaged."""


def score_on_tasks(
    scoring: Scoring, tasks: Mapping[str, "CellTask"], folder: Path
) -> list[TaskResult]:
    """Scores a model on tasks, and writes its answers into a file of samples for each of them.

    All ranks must call it; they share the questions. Answers are kept as for the split `test`, so that an interrupted
    scoring can resume.

    Args:
        scoring: the opened model, with its ranks and the place where answers are kept.
        tasks: {name: task}.
        folder: the cell's folder.
    """
    asking = Asking(precision=scoring.precision, ranks=scoring.ranks, kept=scoring.kept)
    results = []
    for name, task in tasks.items():
        result = score_task(cast("LoadedModel", scoring.built), task.config, task.questions, asking)
        scoring.ranks.on_rank0(partial(write_samples, samples_file(folder, name), result))
        results.append(result)
    return results


@dataclass(frozen=True)
class CellTask:
    """A task with the questions that a cell is asked."""

    config: TaskConfig
    questions: QuestionSet


def open_cell_tasks(spec: CellSpec, ranks: Ranks) -> dict[str, CellTask]:
    """Returns {name: task} of a specification, on every rank.

    Raises:
        DataError: a task has changed since the comparison was started.
    """
    return ranks.rank0_first(lambda: {name: _open(name, task) for name, task in spec.tasks.items()})


def _open(name: str, task: TaskSpec) -> CellTask:
    named = named_task(task.task)
    questions = read_asked(named, task.limit)
    if (questions.identity, named.asked) != (task.identity, task.asked):
        raise DataError(
            f"task {name} ({task.task}) has changed since the comparison was started (its questions, references, "
            "images or settings); start `fvl compare` again, which scores all cells alike"
        )
    return CellTask(named.config, questions)


def measured_tasks(spec: CellSpec, results: Sequence[TaskResult]) -> dict[str, Any]:
    """Returns `tasks` and `macro` of Measurements; empty without tasks."""
    if not results:
        return {}
    tasks = {result.task: TaskScores(result.identity, result.scores) for result in results}
    primary = {result.task: result.primary for result in results}
    return {TASKS: tasks, MACRO: averages_of(spec.macro, primary, tasks)}


def prompt_tokens(scoring: Scoring, tasks: Mapping[str, CellTask]) -> int | None:
    """Returns the mean number of text tokens of the first task's first PROMPTS prompts; None without tasks."""
    for task in tasks.values():
        processor = cast("LoadedModel", scoring.built).processor
        form, image_tokens = QuestionForm(**processor.asking), scoring.built.model.image_spec.tokens_per_image
        lengths = [
            len(processor.encoder.prompt(form.apply(question.messages))) - image_tokens * len(question.images)
            for question in task.questions.questions[:PROMPTS]
        ]
        return max(1, round(sum(lengths) / len(lengths)))
    return None


def samples_file(folder: Path, task: str) -> Path:
    """Returns the file of a cell's answers to the questions of a task."""
    return folder / SAMPLES.format(task=task)


def cell_samples(folder: Path, task: str, metric: str) -> list[TaskSample]:
    """Reads the answers of a finished cell to the questions of a task.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        return read_samples(samples_file(folder, task), metric)
    except UserError as error:
        raise DataError(f"{error}; delete {folder / 'result.json'}, and the cell is scored again") from None


def sample_rows(samples: Sequence[TaskSample]) -> list[dict[str, Any]]:
    """Returns the rows of a table with every answer to a task."""
    return [
        {
            "id": sample.id,
            "kind": sample.kind,
            "cluster": sample.cluster,
            "question": sample.reference.question,
            "truth": " | ".join(sample.reference.answers),
            "answer": sample.prediction,
            "score": sample.score if isfinite(sample.score) else None,
            **{f"{BY}{field}": value for field, value in sample.slices.items()},
        }
        for sample in samples
    ]


def task_numbers(measured: Mapping[str, Any]) -> dict[str, float]:
    """Returns {name: value} of the finite scores, as MLflow names them: tasks/<task>/<number or kind>, macro/<name>.

    Args:
        measured: see measured_tasks.
    """
    named = {f"{MACRO}/{name}": value for name, value in measured.get(MACRO, {}).items()}
    for task, found in measured.get(TASKS, {}).items():
        scores = found.scores
        values = {**scores.by_kind, **scores.further, OVER_KINDS: scores.macro, OVER_QUESTIONS: scores.overall}
        named |= {f"{TASKS}/{task}/{name.replace(' ', '_')}": value for name, value in values.items()}
    return {name: float(value) for name, value in named.items() if isfinite(value)}

