"""Base class of the metrics of answers, and the scores they return.

A metric of your own is one file, named in `plugins:` of a YAML file:

    @register("metric", "contains")
    class ContainsMetric(AnswerMetric):
        \"\"\"Whether the answer contains the true one.\"\"\"

        title = "Containment"
        criterion = "truth contained"
        explanation = "count as right when they contain the truth"

        @dataclass
        class Config:
            \"\"\"Nothing to set.\"\"\"

        def score(self, text: str, truth: str) -> float:
            return float(truth in text)

A comparison names it as `metric: contains/macro`, a task as `metric: {name: contains}`. Tables, figures, tests and
MLflow names follow from the class. docs/extending.md has one with an option and a number of its own.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite, nan
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torchmetrics import Metric

from fvl_lightning.evaluation.metrics.averages import OVER_KINDS, OVER_QUESTIONS


@dataclass(frozen=True)
class Reference:
    """The reference that an answer is compared with."""

    answers: tuple[str, ...]
    """The reference answers; several where people were asked, or where several texts are right."""
    question: str = ""
    """The text of the question."""
    choices: tuple[str, ...] = ()
    """The options of a multiple-choice question, in order."""
    group: str = ""
    """Name of the group of questions that are scored together, such as the image of MME's pairs."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the question's row, texts and numbers by name."""


@dataclass
class KindScores:
    """Scores of one metric on one set of questions."""

    macro: float
    """Average over the kinds of question."""
    overall: float
    """Average over the questions; of a metric whose aggregate is no mean, the aggregate of all questions."""
    by_kind: dict[str, float] = field(default_factory=dict)
    """{kind of question: average over its questions}, of the kinds that were asked."""
    further: dict[str, float] = field(default_factory=dict, metadata={"written": "if filled"})
    """{name: value} of the further numbers that some metrics report, such as precision and recall."""

    def average(self, name: str) -> float:
        """Returns the number of that name: macro, overall, or one of `further`."""
        return self.further[name] if name in self.further else float(getattr(self, name))


class AnswerMetric(Metric, ABC):
    """Scores generated answers: one by one with `score_answer`, and all of them with `update` and `compute`.

    By default, an answer's score is the best one over its references, and an aggregate is the mean of the scores: per
    kind of question, over kinds, and over questions. A metric that combines references differently overrides
    `score_answer`; one whose aggregate is not a mean overrides `update` and `compute`, and sets `is_mean` to False.
    """

    title: ClassVar[str]
    """Name in tables and figures, such as "Accuracy"."""
    criterion: ClassVar[str]
    """How an answer is judged, for the label of an axis, such as "exact match"."""
    explanation: ClassVar[str]
    """How an answer is judged, in a sentence that begins with "Answers ..."."""
    averages: ClassVar[Mapping[str, str]] = MappingProxyType(
        {OVER_KINDS: "{title}, macro average over kinds", OVER_QUESTIONS: "{title} over all questions"}
    )
    """{number of KindScores: its name in reports}; the first one is the primary number."""
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    """Lowest and highest score."""
    further_bounds: ClassVar[Mapping[str, tuple[float, float]]] = MappingProxyType({})
    """{number of `averages`: its lowest and highest value} of those that differ from `bounds`."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Required fields of Config; a task sets them, a comparison's `metric` cannot."""
    is_mean: ClassVar[bool] = True
    """Whether `macro` and `overall` are means of the answers' own scores, which can then be resampled."""
    asks_server: ClassVar[bool] = False
    """Whether scoring an answer sends it to a server; the answer prior is then not scored."""
    higher_is_better = True
    full_state_update = False

    def __init__(self, config: Any, kinds: Iterable[str]) -> None:
        """Builds a metric over these kinds of question, with the component's Config."""
        super().__init__()
        self.config, self.kinds = config, sorted(kinds)
        self.add_state("total", torch.zeros(len(self.kinds), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("asked", torch.zeros(len(self.kinds), dtype=torch.long), dist_reduce_fx="sum")

    @classmethod
    def describe(cls, average: str, kinds: int = 0) -> str:
        """Returns what a report calls an average, such as "Accuracy over all questions".

        Args:
            average: a key of `averages`.
            kinds: the number of kinds of question, 0 if it is not known. The average over a single kind is that over
                its questions, and is called so.
        """
        alone = average == OVER_KINDS and kinds == 1 and OVER_QUESTIONS in cls.averages
        return cls.averages[OVER_QUESTIONS if alone else average].format(title=cls.title)

    @classmethod
    def bounds_of(cls, average: str) -> tuple[float, float]:
        """Returns the lowest and highest value of a number of `averages`."""
        return cls.further_bounds.get(average, cls.bounds)

    def prepare(self, references: Iterable[Reference]) -> None:
        """Reads the references of all questions, before `score_answer` is called; most metrics need none.

        Scores with weights from all references, such as CIDEr, are NaN without it. `compute` does not need it.

        Raises:
            DataError: this metric cannot use a reference.
        """

    @abstractmethod
    def score(self, text: str, truth: str) -> float:
        """Returns the score of one answer, within `bounds`.

        Args:
            text: the generated answer.
            truth: the true answer.
        """

    def score_answer(self, text: str, reference: Reference) -> float:
        """Returns the score of one answer: that of the reference that it fits best; NaN without references."""
        best = max if self.higher_is_better else min
        return best((self.score(text, truth) for truth in reference.answers), default=nan)

    def attainable(self, reference: Reference) -> float:
        """Returns the score of the best possible answer to a question, such as less than 1 where people disagree."""
        return self.bounds[1 if self.higher_is_better else 0]

    def is_best(self, text: str, reference: Reference) -> bool:
        """Returns whether a score is the best possible one; figures mark such answers as right."""
        return self.score_answer(text, reference) == self.bounds[1 if self.higher_is_better else 0]

    def update(self, kind: str, text: str, reference: Reference) -> None:
        """Adds one answer to a question of this kind."""
        self._count(kind, self.score_answer(text, reference))

    def update_scored(self, kind: str, text: str, reference: Reference, score: float) -> None:
        """Adds one answer whose `score_answer` is known; only a metric with an `update` of its own scores it again."""
        if type(self).update is AnswerMetric.update and isfinite(score):
            self._count(kind, score)
        else:  # the class's own method: that of the instance would keep results and wait for other ranks
            type(self).update(self, kind, text, reference)

    def _count(self, kind: str, score: float) -> None:
        index = self.kinds.index(kind)
        self.total[index] += score
        self.asked[index] += 1

    def compute(self) -> KindScores:
        """Returns the averages over all answers; NaN without answers, since a missing answer is not a wrong one."""
        counts = {kind: int(number) for kind, number in zip(self.kinds, self.asked, strict=True) if number > 0}
        by_kind = {kind: float(self.total[self.kinds.index(kind)]) / number for kind, number in counts.items()}
        if not by_kind:
            return KindScores(nan, nan)
        overall = float(self.total.sum()) / int(self.asked.sum())
        return KindScores(sum(by_kind.values()) / len(by_kind), overall, by_kind)
