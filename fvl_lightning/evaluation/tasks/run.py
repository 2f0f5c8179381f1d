"""Evaluates several models on several tasks, in one process or on several ranks."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from rich.table import Table

from fvl_lightning.core.device import compute_device
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import TrainerConfig
from fvl_lightning.core.terminal import started_ranks
from fvl_lightning.evaluation.report.assessment import assess
from fvl_lightning.evaluation.report.report import terminal_grids, write_report
from fvl_lightning.evaluation.task_rows.questions import TaskQuestions, read_questions
from fvl_lightning.evaluation.tasks.config import TaskConfig
from fvl_lightning.evaluation.tasks.evaluate import AskingTasks, Progress, evaluate_model, silent
from fvl_lightning.evaluation.tasks.request import EvaluationRequest, file_name
from fvl_lightning.evaluation.tasks.result import TaskResult
from fvl_lightning.evaluation.tasks.samples import outputs_for
from fvl_lightning.evaluation.tasks.score import judged, task_metric
from fvl_lightning.evaluation.tasks.tracking import track_tasks
from fvl_lightning.inference.adapters import attach_adapters
from fvl_lightning.reporting.tables import rich_table
from fvl_lightning.runs.plugins import import_plugins_for
from fvl_lightning.runs.references import answering_model
from fvl_lightning.training.distributed.process_group import Ranks, init_process_group


def run_evaluation(request: EvaluationRequest, progress: Progress = silent) -> dict[str, list[TaskResult]]:
    """Returns {model: its results, task after task}, equal on all ranks.

    Answers of an earlier evaluation are read from the output folder.

    Args:
        request: models and tasks.
        progress: called as questions are answered.

    Raises:
        ConfigError, DataError: a task, a model or a file of samples cannot be used; what was scored is kept.
        PeerFailedError: another rank has failed.
    """
    labels = {model: f"{model} with {request.adapter}" if request.adapter else model for model in request.models}
    _refuse_one_name(list(labels.values()), request.files)
    opened = Opened(request.limit)
    for task in request.tasks:  # before a model is loaded
        opened(task)
    given = {name: _given(file, request.tasks, opened) for name, file in request.files.items()}
    results: dict[str, list[TaskResult]] = {}
    with ranks_of_evaluation(request.accelerator) as ranks:
        for model, label in labels.items():
            import_plugins_for(model, request.plugins or None)
            loaded = ranks.rank0_first(partial(answering_model, model, compute_device(request.accelerator)))
            attach_adapters(loaded, request.adapter and [request.adapter])
            how = AskingTasks(request.output, opened, request.precision, request.variations, ranks, progress)
            results[label] = evaluate_model(loaded, label, request.tasks, how)
            if not request.adapter:
                ranks.on_rank0(partial(track_tasks, model, results[label]))
            del loaded  # before the next model takes its memory
    return results | given


class Opened:
    """Reads the questions of each task once, and reuses them for other prompts."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._read: dict[str, tuple[TaskConfig, TaskQuestions]] = {}

    def __call__(self, task: TaskConfig) -> TaskQuestions:
        """Returns the questions of a task in its prompt; raises the errors of read_questions."""
        if task.name not in self._read:
            self._read[task.name] = task, read_questions(task, self._limit)
        first, questions = self._read[task.name]
        return questions if task.prompt == first.prompt else questions.with_prompt(task.prompt)


@contextlib.contextmanager
def ranks_of_evaluation(accelerator: str) -> Iterator[Ranks]:
    """Joins the processes that were started together; yields a single rank for a single process."""
    if (count := started_ranks()) == 1:
        yield Ranks()
        return
    trainer = TrainerConfig(devices=count, strategy="ddp", accelerator=accelerator)  # type: ignore[arg-type]
    with init_process_group(trainer) as ranks:
        yield ranks


def _refuse_one_name(labels: Sequence[str], files: Mapping[str, Path]) -> None:
    """Raises ConfigError for two models that would have the same files, or the same name in the report."""
    seen: dict[str, str] = {}
    for label in labels:
        if (other := seen.setdefault(file_name(label), label)) != label:
            raise ConfigError(f"MODEL: {other} and {label} would have files of one name; evaluate them apart")
    for name in files:
        if name in labels:
            raise ConfigError(f"--from: {name} is the name of a model too, write <another name>={files[name]}")


def _given(file: Path, tasks: Sequence[TaskConfig], opened: Callable[[TaskConfig], TaskQuestions]) -> list[TaskResult]:
    """Returns the result of a file of samples; with several tasks, its name must contain that of exactly one."""
    named = [task for task in tasks if len(tasks) == 1 or task.name in file.stem]
    if len(named) != 1:
        names = ", ".join(task.name for task in tasks)
        raise ConfigError(f"--from: {file} must have the name of exactly one task in its file name: {names}")
    (task,) = named
    questions = opened(task)
    return [judged(task, questions, outputs_for(file, questions.questions))]


def write_results(request: EvaluationRequest, results: Mapping[str, Sequence[TaskResult]]) -> tuple[list[Table], str]:
    """Writes the report of an evaluation, and returns its tables for a terminal and the path of the report.

    Raises:
        DataError: the report cannot be written.
    """
    names = dict(zip(results, short_names(list(results)), strict=True))
    assessed = []
    for task in request.tasks:
        of_task = {
            names[model]: [result for result in found if result.task == task.name] for model, found in results.items()
        }
        of_task = {name: found for name, found in of_task.items() if found}
        kinds = {sample.kind for found in of_task.values() for sample in found[0].samples}
        published = {model: score / task.scale for model, score in task.published.items()}
        assessed.append(assess(of_task, task_metric(task, kinds), published=published))
    about = {"precision": request.precision}
    about |= {"questions of a task": f"at most {request.limit}, spread evenly"} if request.limit else {}
    about |= {short: model for model, short in names.items() if short != model}
    report = write_report(assessed, request.output, about)[0].parent / "report.md"
    return [rich_table(grid) for grid in terminal_grids(assessed)], str(report)


def short_names(references: Sequence[str]) -> list[str]:
    """Returns the differing parts of paths, such as concat and gated; the last two parts of a single path."""
    parts = [Path(reference).parts for reference in references]
    if len(parts) == 1:
        return ["/".join(parts[0][-2:])]
    shared = [set(column) for column in zip(*parts, strict=False)]
    first = next((place for place, column in enumerate(shared) if len(column) > 1), 0)
    backwards = [set(column) for column in zip(*(part[::-1] for part in parts), strict=False)]
    last = next((place for place, column in enumerate(backwards) if len(column) > 1), 0)
    short = ["/".join(part[first : len(part) - last]) for part in parts]
    return short if all(short) and len(set(short)) == len(short) else list(references)
