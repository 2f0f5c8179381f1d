"""VQA accuracy, the agreement with people's answers, of VQAv2, TextVQA, OK-VQA and VizWiz."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan
from typing import Literal

from fvl_lightning.core.registry import register
from fvl_lightning.evaluation.metrics.base import AnswerMetric, Reference
from fvl_lightning.evaluation.metrics.texts.evalai import normalised_answer, without_articles, without_punctuation

ENOUGH = 3
"""Number of people whose agreement makes an answer right."""


@register("metric", "vqa_accuracy")
class VqaAccuracyMetric(AnswerMetric):
    """Mean of min(1, n / 3), leaving out each person once, where n of the others gave this answer (EvalAI).

    With two or three references, fewer than three others are left, and all of them must agree; with one reference,
    the answer must equal it. `as_lmms_eval` always divides by 3, so that an answer to a question with one reference
    scores 0. With four or more references, both are equal.
    """

    title = "VQA accuracy"
    criterion = "people who agree"
    explanation = "count as right when three of the people who were asked gave them, and in part when fewer did"

    @dataclass
    class Config:
        """Options of the comparison."""

        normalisation: Literal["textvqa", "vqav2"] = "textvqa"
        """textvqa: commas, question marks and possessives are split off first, as for TextVQA, OK-VQA and VizWiz;
        vqav2: they are not, as for VQAv2."""
        as_lmms_eval: bool = False
        """Whether questions with fewer than four references are scored as in lmms-eval."""

    def score(self, text: str, truth: str) -> float:
        """Returns 1 for an answer that equals the truth after normalisation, else 0."""
        normalised = self._normalisation()
        return float(normalised(text) == normalised(truth))

    def score_answer(self, text: str, reference: Reference) -> float:
        """Returns the mean agreement with the other people, leaving out each one once; NaN without references."""
        if not reference.answers:
            return nan
        normalised = self._normalisation()
        text = normalised(text)
        if len(reference.answers) == 1 and not self.config.as_lmms_eval:
            return float(text == normalised(reference.answers[0]))
        return self._agreement([normalised(answer) == text for answer in reference.answers])

    def attainable(self, reference: Reference) -> float:
        """Returns the score of the answer that most people gave; NaN without references."""
        if len(reference.answers) < 2:
            return nan if not reference.answers else float(not self.config.as_lmms_eval)
        most = max(Counter(map(self._normalisation(), reference.answers)).values())
        return self._agreement([place < most for place in range(len(reference.answers))])

    def _agreement(self, equal: Sequence[bool]) -> float:
        """Returns the score of an answer that is or is not equal to each reference."""
        enough = ENOUGH if self.config.as_lmms_eval else min(ENOUGH, len(equal) - 1)
        return sum(min(1.0, (sum(equal) - one) / enough) for one in equal) / len(equal)

    def _normalisation(self) -> Callable[[str], str]:
        return normalised_answer if self.config.normalisation == "textvqa" else _as_vqav2


def _as_vqav2(text: str) -> str:
    text = text.replace("\n", " ").replace("\t", " ").strip()
    return without_articles(without_punctuation(text))
