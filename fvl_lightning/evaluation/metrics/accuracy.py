"""Accuracy of answers by exact match."""

from dataclasses import dataclass

from fvl_lightning.core.registry import register
from fvl_lightning.evaluation.metrics.base import AnswerMetric


@register("metric", "accuracy")
class AccuracyMetric(AnswerMetric):
    """Exact match after folding case and white space; base.py averages it per kind, over kinds and over questions."""

    title = "Accuracy"
    criterion = "exact match"
    explanation = (
        "count as right when they equal the truth after lower-casing, with white space folded and without a final full "
        "stop"
    )

    @dataclass
    class Config:
        """Nothing to set."""

    def score(self, text: str, truth: str) -> float:
        """Returns 1 for an answer that equals the truth, else 0."""
        return float(normalised(text) == normalised(truth))


def normalised(text: str) -> str:
    """Returns the text in lower case, with white space folded, without a final full stop."""
    return " ".join(text.lower().split()).removesuffix(".").rstrip()
