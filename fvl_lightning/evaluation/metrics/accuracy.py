"""Accuracy of answers by exact match."""

import string
from dataclasses import dataclass

from fvl_lightning.core.registry import register
from fvl_lightning.evaluation.metrics.base import AnswerMetric

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@register("metric", "accuracy")
class AccuracyMetric(AnswerMetric):
    """Exact match, ignoring case and repeated white space; averaged per kind, over kinds and over questions."""

    title = "Accuracy"
    criterion = "exact match"
    explanation = (
        "count as right when they equal the truth after lower-casing, with white space folded and without a final full "
        "stop"
    )

    @dataclass
    class Config:
        """Options of the match."""

        ignore_punctuation: bool = False
        """Whether ASCII punctuation is ignored, and of white space only that at both ends, as lmms-eval's exact_match
        does for GQA."""

    def score(self, text: str, truth: str) -> float:
        """Returns 1 for an answer that equals the truth, else 0."""
        if self.config.ignore_punctuation:
            return float(_without_punctuation(text) == _without_punctuation(truth))
        return float(normalised(text) == normalised(truth))


def normalised(text: str) -> str:
    """Returns the text in lower case, with single spaces, without a final full stop."""
    return " ".join(text.lower().split()).removesuffix(".").rstrip()


def _without_punctuation(text: str) -> str:
    return text.strip().lower().translate(_NO_PUNCTUATION)
