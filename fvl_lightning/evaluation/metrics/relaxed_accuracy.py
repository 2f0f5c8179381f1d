"""Relaxed accuracy, of ChartQA: numbers may be off by five per cent."""

from dataclasses import dataclass
from math import isfinite

from fvl_lightning.core.config.fields import number
from fvl_lightning.core.registry import register
from fvl_lightning.evaluation.metrics.base import AnswerMetric
from fvl_lightning.evaluation.metrics.texts.numbers import as_number


@register("metric", "relaxed_accuracy")
class RelaxedAccuracyMetric(AnswerMetric):
    """Scores 1 for a number within five per cent of the truth, or for its text apart from case, and 0 for others.

    A number with a per cent sign is a hundredth of it, in the answer and in the truth. Where the truth is zero or no
    number, texts are compared. inf and nan are texts here; to lmms-eval they are numbers that equal nothing, even
    themselves, which `as_lmms_eval` does, too.
    """

    title = "Relaxed accuracy"
    criterion = "within 5 %"
    explanation = "count as right when they are a number within 5 % of the truth, or the same text apart from case"

    @dataclass
    class Config:
        """Options of the comparison."""

        tolerance: float = number(0.05, at_least=0)
        """Largest difference from the truth, as a share of it."""
        as_lmms_eval: bool = False
        """Whether inf and nan are numbers, as in lmms-eval."""

    def score(self, text: str, truth: str) -> float:
        """Returns 1 for an answer that is near enough, else 0."""
        found, true = (self._number(part) for part in (text, truth))
        if found is None or not true:
            return float(text.lower() == truth.lower())
        return float(abs(found - true) / abs(true) <= self.config.tolerance)

    def _number(self, text: str) -> float | None:
        percent = text.endswith("%")
        value = as_number(text.rstrip("%") if percent else text)
        if value is None or not (isfinite(value) or self.config.as_lmms_eval):
            return None
        return value / 100.0 if percent else value
