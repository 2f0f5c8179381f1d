"""Names of scores of tasks, in a comparison file, in results and in MLflow.

A score of a task is named tasks/<task>/<number>, such as tasks/pope/f1; an average over tasks is named macro/<name>.
Scores of the split `test` begin with a registered metric instead, such as accuracy/macro.
"""

from fvl_lightning.evaluation.metrics.averages import OVER_TASKS
from fvl_lightning.evaluation.metrics.lookup import DEFAULT_SCORE

TASKS, MACRO = "tasks", OVER_TASKS
"""First parts of the names of tasks' scores, and of averages over tasks."""


def is_task_score(score: str) -> bool:
    """Returns whether a score is that of a task, or an average over tasks, rather than one of the split `test`."""
    return score.partition("/")[0] in (TASKS, MACRO)


def is_average(score: str) -> bool:
    """Returns whether a score is an average over tasks."""
    return score.startswith(f"{MACRO}/")


def score_of_split(score: str) -> str:
    """Returns the score for the split `test`: the comparison's own, or the default if that is a score of tasks."""
    return DEFAULT_SCORE if is_task_score(score) else score


def task_score(task: str, number: str) -> str:
    """Returns the name of a task's score."""
    return f"{TASKS}/{task}/{number}"


def macro_score(name: str) -> str:
    """Returns the name of an average over tasks."""
    return f"{MACRO}/{name}"


def split_task_score(score: str) -> tuple[str, str]:
    """Returns (task, number) of a task's score, or (average, "") of an average over tasks."""
    task, _, number = score.partition("/")[2].partition("/")
    return task, number


def without_number(score: str) -> str:
    """Returns tasks/<task> of tasks/<task>/<number>; an average over tasks has no number."""
    _, number = split_task_score(score)
    return score.removesuffix(f"/{number}") if number else score
