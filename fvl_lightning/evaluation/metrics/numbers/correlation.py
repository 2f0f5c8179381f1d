"""Correlation of answers that are numbers with the true ones."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from math import isnan, nan
from types import MappingProxyType

from fvl_lightning.core.config.fields import number
from fvl_lightning.core.registry import register
from fvl_lightning.evaluation.metrics.averages import OVER_KINDS, OVER_QUESTIONS
from fvl_lightning.evaluation.metrics.base import KindScores, Reference
from fvl_lightning.evaluation.metrics.collecting import CollectingMetric
from fvl_lightning.evaluation.metrics.numbers.pairs import check_numbers, pearson, spearman
from fvl_lightning.evaluation.metrics.texts.numbers import first_number


@register("metric", "correlation")
class CorrelationMetric(CollectingMetric):
    """Pearson's and Spearman's correlation of the first number in the answers with the true ones.

    One answer has no score. A kind whose answers or truths are constant has no correlation, and is left out of the
    macro average. An answer without a number counts as the number `without`.
    """

    title = "Correlation"
    criterion = "correlation"
    explanation = "are compared by the correlation of their first number with the true one"
    averages = MappingProxyType(
        {
            OVER_KINDS: "Pearson's correlation, macro average over kinds",
            OVER_QUESTIONS: "Pearson's correlation over all questions",
            "spearman": "Spearman's correlation over all questions",
        }
    )
    bounds = (-1.0, 1.0)
    is_mean = False

    @dataclass
    class Config:
        """Options of how answers are read."""

        without: float = number(0.0)
        """The number that an answer without one counts as."""

    def prepare(self, references: Iterable[Reference]) -> None:
        """Checks that every truth has a number; DataError where one has none."""
        check_numbers("correlation", references)

    def score(self, text: str, truth: str) -> float:
        """Returns NaN: one answer has no correlation."""
        return nan

    def update(self, kind: str, text: str, reference: Reference) -> None:
        """Adds one answer to a question of this kind; one whose truth has no number is left out."""
        found = first_number(text)
        true = first_number(reference.answers[0]) if reference.answers else None
        if true is not None:
            self.keep(kind, [self.config.without if found is None else found, true])

    def compute(self) -> KindScores:
        """Returns the correlations by kind and over all questions; NaN where there are none."""
        by_kind: dict[str, list[tuple[float, float]]] = defaultdict(list)
        pairs = []
        for kind, (found, true), _ in self.kept():
            by_kind[kind].append((found, true))
            pairs.append((found, true))
        correlations = {kind: pearson(found) for kind, found in sorted(by_kind.items())}
        known = [value for value in correlations.values() if not isnan(value)]
        macro = sum(known) / len(known) if known else nan
        return KindScores(macro, pearson(pairs), correlations, {"spearman": spearman(pairs)})
