"""Schema of the evaluation during a training, and the metrics by which the best weights can be kept."""

from dataclasses import dataclass, field

from fvl_lightning.core.config.field_types import PathText
from fvl_lightning.core.config.fields import number

VALIDATION_LOSS = "validation/loss"
"""Name of the loss on the split `validation`."""
EVALUATION = "evaluation/"
"""Beginning of the names of scores during a training, such as evaluation/textvqa/overall."""


@dataclass
class EvaluationConfig:
    """Evaluation on the validation rows of tasks while a model trains; the rows of `data` are never asked."""

    tasks: list[PathText] = field(default_factory=list)
    """Names of tasks of the kit, or files of tasks of your own, each with rows in its `validation`."""
    every: int = number(100, at_least=1)
    """Steps between two evaluations; the last step has one, too."""
    limit: int | None = number(None, at_least=1, hint="null asks all")
    """The largest number of questions of a task, spread evenly; null for all."""

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("trainer.evaluate.tasks: name at least one task")


def check_evaluation(evaluate: EvaluationConfig | None, max_steps: int, keep_best: bool, best_by: str) -> None:
    """Raises ValueError for an evaluation that is never reached, or a metric of the best weights that is not logged."""
    if evaluate is not None and evaluate.every > max_steps:
        raise ValueError(
            f"trainer.evaluate.every: {evaluate.every} is not reached in {max_steps} steps (trainer.max_steps); take "
            f"at most {max_steps}"
        )
    if best_by == VALIDATION_LOSS:
        return
    if not keep_best:
        raise ValueError("trainer.keep_best_by: it chooses the weights of trainer.keep_best, which is false")
    if not best_by.startswith(EVALUATION):
        raise ValueError(
            f"trainer.keep_best_by: expected {VALIDATION_LOSS} or {EVALUATION}<task>/<number>, found {best_by!r}"
        )
    if evaluate is None:
        raise ValueError(f"trainer.keep_best_by: {best_by} needs the task in trainer.evaluate.tasks")
