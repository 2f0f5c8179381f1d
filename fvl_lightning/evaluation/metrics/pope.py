"""POPE: questions whether an object is in the image, half of them about objects that are not."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import nan
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from fvl_lightning.core.registry import register
from fvl_lightning.evaluation.metrics.averages import OVER_KINDS, OVER_QUESTIONS
from fvl_lightning.evaluation.metrics.base import AnswerMetric, KindScores, Reference
from fvl_lightning.evaluation.metrics.texts.yes_no import check_yes_or_no

LABELS = ("yes", "no", "")
"""Labels of an answer; the last one is that of an answer which is neither."""


@register("metric", "pope")
class PopeMetric(AnswerMetric):
    """Accuracy of yes and no, with precision, recall and F1 of yes, and the share of answers that are yes.

    An answer is read as in lmms-eval: it must be yes or no, apart from case and white space around it. Two aggregates
    differ from lmms-eval's unless `as_lmms_eval` is set. Recall counts questions with the truth yes and an answer that
    is neither yes nor no as misses; lmms-eval leaves them out, so that a model gains by not answering. yes_rate is the
    share of yes among the answers; lmms-eval's yes_ratio is that among the truths, which no model changes.
    """

    title = "POPE"
    criterion = "yes or no"
    explanation = "count as right when they are yes or no, as the truth, apart from case"
    averages = MappingProxyType(
        {
            OVER_KINDS: "{title} accuracy, macro average over kinds",
            OVER_QUESTIONS: "{title} accuracy over all questions",
            "f1": "{title} F1 of yes over all questions",
            "f1_macro": "{title} F1 of yes, average over kinds",
            "precision": "{title} precision of yes",
            "recall": "{title} recall of yes",
            "yes_rate": "{title} share of yes",
        }
    )

    @dataclass
    class Config:
        """Options of how answers are read and counted."""

        first_word: bool = False
        """Whether the first word decides, as in "Yes, there is a dog."; else the whole answer must be yes or no."""
        as_lmms_eval: bool = False
        """Whether recall, F1 and yes_rate are those of lmms-eval."""

    def __init__(self, config: Any, kinds: Iterable[str]) -> None:
        """Builds a metric over these kinds of question, with the component's Config."""
        super().__init__(config, kinds)
        self.counts: Tensor  # [kinds, truths yes and no, answers yes, no and neither]
        self.add_state("counts", torch.zeros(len(self.kinds), 2, len(LABELS), dtype=torch.long), dist_reduce_fx="sum")

    def prepare(self, references: Iterable[Reference]) -> None:
        """Checks that every truth is yes or no; DataError where one is not."""
        check_yes_or_no("pope", references, _folded)

    def score(self, text: str, truth: str) -> float:
        """Returns 1 for an answer that equals the truth, else 0."""
        return float(self._label(text) == _folded(truth))

    def update(self, kind: str, text: str, reference: Reference) -> None:
        """Adds one answer to a question of this kind."""
        super().update(kind, text, reference)
        truth = _folded(reference.answers[0]) if reference.answers else ""
        if truth in ("yes", "no"):
            self.counts[self.kinds.index(kind), LABELS.index(truth), LABELS.index(self._label(text))] += 1

    def compute(self) -> KindScores:
        """Returns accuracy by kind, and the further numbers over all questions; NaN where nothing was asked."""
        scores = super().compute()
        asked = [counts for counts in self.counts if counts.sum() > 0]
        further = self._rates(self.counts.sum(0)) if asked else dict.fromkeys(("f1", "precision", "recall"), nan)
        by_kind = [self._rates(counts)["f1"] for counts in asked]
        further["f1_macro"] = sum(by_kind) / len(by_kind) if by_kind else nan
        further["yes_rate"] = self._yes_rate(self.counts.sum(0)) if asked else nan
        return replace(scores, further=further)

    def _label(self, text: str) -> str:
        text = _folded(text)
        if self.config.first_word:
            words = "".join(character if character.isalnum() else " " for character in text[:100]).split()
            text = words[0] if words else ""
        return text if text in LABELS else ""

    def _rates(self, counts: Tensor) -> dict[str, float]:
        """Returns precision, recall and F1 of yes from counts `[2, 3]`; 0 where there is nothing to divide by."""
        (hits, misses, unanswered), (alarms, _, _) = counts.tolist()
        missed = misses if self.config.as_lmms_eval else misses + unanswered
        precision = hits / (hits + alarms) if hits + alarms else 0.0
        recall = hits / (hits + missed) if hits + missed else 0.0
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        return {"f1": f1, "precision": precision, "recall": recall}

    def _yes_rate(self, counts: Tensor) -> float:
        yes = counts[0].sum() if self.config.as_lmms_eval else counts[:, 0].sum()
        return float(yes) / float(counts.sum())


def _folded(text: str) -> str:
    return text.lower().strip()
