"""Adds scores of tasks to the model's own run in MLflow."""

import re
from collections.abc import Iterable, Iterator
from math import isfinite
from pathlib import Path

from fvl_lightning.evaluation.metrics.averages import OVER_KINDS, OVER_QUESTIONS
from fvl_lightning.evaluation.tasks.result import TaskResult
from fvl_lightning.modeling.adapters.folders import is_model_folder
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.tracking import track_results

PREFIX = "evaluate"
"""The first part of the names of these scores in MLflow."""


def track_tasks(reference: str, results: Iterable[TaskResult]) -> None:
    """Adds the scores of a model to its run, if that run is tracked.

    They are called evaluate/<task>/<number>, and evaluate/<task>/<control>/<number>.
    """
    if is_model_folder(Path(reference)):
        return
    run = RunFolder.open(reference)
    if run.tracking.is_file():
        before = run.read_tracking()
        track_results(run, {**before.results, **dict(named_scores(results))}, before.tables)


def named_scores(results: Iterable[TaskResult], first: str = PREFIX) -> Iterator[tuple[str, float]]:
    """Yields (name in MLflow, value) of every finite number of the results; names begin with `first`."""
    for result in results:
        scores = result.scores
        numbers = {OVER_KINDS: scores.macro, OVER_QUESTIONS: scores.overall, **scores.by_kind, **scores.further}
        before = (first, result.task, result.variation)
        yield from ((logged_name(*before, name), value) for name, value in numbers.items() if isfinite(value))


def logged_name(*parts: str) -> str:
    """Returns the name of a score in MLflow; characters that it refuses, as in a kind of question, become _."""
    return "/".join(re.sub(r"[^\w .-]", "_", part) for part in parts if part)
