"""Results of a model on a task: every question with the answer that was given, and the scores of all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fvl_lightning.evaluation.metrics.base import KindScores, Reference
from fvl_lightning.evaluation.tasks.question import ONE_KIND


@dataclass(frozen=True)
class TaskSample:
    """One question of a task with a model's answer."""

    id: str
    """Names the question within its task."""
    output: str
    """The model's output; for a task by likelihood, a JSON list of the choices' log-likelihoods per token."""
    prediction: str
    """The answer that was judged: the output after the task's cleaning steps, or the letter of the chosen option."""
    score: float
    """The metric's score of this answer; NaN for a metric that scores only all answers together."""
    reference: Reference
    kind: str = ONE_KIND
    cluster: str = ""
    slices: Mapping[str, str] = field(default_factory=dict)
    prompt: str = ""
    """The text of the user's message."""


@dataclass(frozen=True)
class TaskResult:
    """A model on a task."""

    task: str
    """Name of the task."""
    title: str
    """Name of the task in tables and figures."""
    metric: str
    """Registered name of the metric."""
    primary: str
    """The number of `scores` that stands for the task, such as macro."""
    scores: KindScores
    samples: Sequence[TaskSample]
    identity: str = ""
    """The hash of the questions; results can be compared where it is equal."""
    variation: str = ""
    """The control or corruption under which the questions were asked; empty for the task as it is."""

    @property
    def score(self) -> float:
        """The number that stands for the task."""
        return self.scores.average(self.primary)
