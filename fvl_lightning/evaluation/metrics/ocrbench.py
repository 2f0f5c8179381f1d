"""OCRBench: the share of answers that contain one of their reference answers."""

from dataclasses import dataclass, replace
from types import MappingProxyType

from fvl_lightning.core.registry import register
from fvl_lightning.evaluation.metrics.averages import OVER_KINDS, OVER_QUESTIONS
from fvl_lightning.evaluation.metrics.base import AnswerMetric, KindScores, Reference

FORMULAS = "HME100k"
"""The part of OCRBench with handwritten formulas, in which spaces mean nothing."""

_NARROW = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: " "}
"""Full-width characters of East Asian scripts, and the ASCII ones that they stand for."""


@register("metric", "ocrbench")
class OcrbenchMetric(AnswerMetric):
    """Scores 1 for an answer that contains one of the reference answers, and 0 for others.

    Case is ignored, and full-width letters count as ASCII.

    In formulas (a row whose field `dataset` is HME100k) spaces are ignored, and capitals count.
    """

    title = "OCRBench"
    criterion = "truth contained in the answer"
    explanation = "count as right when they contain one of the reference answers, in lower case"
    averages = MappingProxyType(
        {
            OVER_KINDS: "{title}, macro average over kinds",
            OVER_QUESTIONS: "{title} over all questions",
            "points": "{title} points",
        }
    )
    further_bounds = MappingProxyType({"points": (0.0, 1000.0)})

    @dataclass
    class Config:
        """Nothing to set."""

    def score(self, text: str, truth: str) -> float:
        """Returns 1 for an answer that contains the truth, else 0."""
        return float(_folded(truth.translate(_NARROW).lower()) in _folded(text.translate(_NARROW).lower()))

    def score_answer(self, text: str, reference: Reference) -> float:
        """Returns 1 for an answer that contains one of the references, else 0; NaN without references."""
        if reference.row.get("dataset") != FORMULAS or not reference.answers:
            return super().score_answer(text, reference)
        text = _formula(text)
        return float(any(_formula(truth) in text for truth in reference.answers))

    def compute(self) -> KindScores:
        """Returns the averages, and as `points` the number of right answers, which are 1,000 at most on OCRBench."""
        return replace(super().compute(), further={"points": float(self.total.sum())})


def _folded(text: str) -> str:
    return text.strip().replace("\n", " ")


def _formula(text: str) -> str:
    return _folded(text).replace(" ", "")
