"""Errors of answers that are numbers."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import inf, nan, sqrt
from types import MappingProxyType

from fvl_lightning.core.config.fields import number
from fvl_lightning.core.registry import register
from fvl_lightning.evaluation.metrics.averages import OVER_KINDS, OVER_QUESTIONS
from fvl_lightning.evaluation.metrics.base import KindScores, Reference
from fvl_lightning.evaluation.metrics.collecting import CollectingMetric
from fvl_lightning.evaluation.metrics.numbers.pairs import check_numbers, pearson, spearman
from fvl_lightning.evaluation.metrics.texts.numbers import first_number


@register("metric", "regression")
class RegressionMetric(CollectingMetric):
    """Squared error of the first number in the answer; also absolute errors and correlations.

    An answer without a number counts as the number `without`, so that a model gains nothing by not answering;
    `numbers` is the share of answers with one. Correlations are reported, too; the metric `correlation` compares arms
    by them, since there more is better.
    """

    title = "Squared error"
    criterion = "squared error"
    explanation = "score the squared difference of their first number from the true one"
    averages = MappingProxyType(
        {
            OVER_KINDS: "{title}, macro average over kinds",
            OVER_QUESTIONS: "{title}, mean over all questions",
            "rmse": "Root of the mean squared error",
            "mae": "Mean absolute error",
        }
    )
    bounds = (0.0, inf)
    higher_is_better = False

    @dataclass
    class Config:
        """Options of how answers are read."""

        without: float = number(0.0)
        """The number that an answer without one counts as."""

    def prepare(self, references: Iterable[Reference]) -> None:
        """Checks that every truth has a number; DataError where one has none."""
        check_numbers("regression", references)

    def score(self, text: str, truth: str) -> float:
        """Returns the squared difference; NaN for a truth without a number."""
        true = first_number(truth)
        return nan if true is None else (self._number(text) - true) ** 2

    def update(self, kind: str, text: str, reference: Reference) -> None:
        """Adds one answer to a question of this kind."""
        super().update(kind, text, reference)
        true = first_number(reference.answers[0]) if reference.answers else None
        self.keep(kind, [self._number(text), nan if true is None else true, float(first_number(text) is not None)])

    def compute(self) -> KindScores:
        """Returns mean squared errors, and the further numbers over all questions; NaN where nothing was asked."""
        scores, rows = super().compute(), [numbers for _, numbers, _ in self.kept()]
        pairs = [(found, true) for found, true, _ in rows]
        further = {
            "rmse": sqrt(scores.overall) if rows else nan,
            "mae": sum(abs(found - true) for found, true in pairs) / len(pairs) if pairs else nan,
            "pearson": pearson(pairs),
            "spearman": spearman(pairs),
            "numbers": sum(has for _, _, has in rows) / len(rows) if rows else nan,
        }
        return replace(scores, further=further)

    def _number(self, text: str) -> float:
        found = first_number(text)
        return self.config.without if found is None else found
