"""ROUGE-L: the longest common subsequence of words."""

from dataclasses import dataclass
from math import nan
from typing import Literal

from fvl_lightning.core.registry import register
from fvl_lightning.evaluation.metrics.base import AnswerMetric, Reference
from fvl_lightning.evaluation.metrics.captions.tokens import caption_tokens
from fvl_lightning.evaluation.metrics.texts.distances import MAX_TOKENS, common_subsequence

BETA = 1.2
"""Weight of recall against precision."""


@register("metric", "rouge_l")
class RougeLMetric(AnswerMetric):
    """F-measure of the largest precision and the largest recall over the references, as in pycocoevalcap."""

    title = "ROUGE-L"
    criterion = "longest common subsequence"
    explanation = "score the longest common subsequence of their words and those of the references"

    @dataclass
    class Config:
        """Options of how captions are split."""

        tokens: Literal["ptb", "spaces"] = "ptb"
        """How captions are split. ptb: as those of COCO, in lower case without punctuation; spaces: at white
        space."""

    def score(self, text: str, truth: str) -> float:
        """Returns the score of one caption and one reference."""
        return self.score_answer(text, Reference((truth,)))

    def score_answer(self, text: str, reference: Reference) -> float:
        """Returns the score of one caption; NaN without references."""
        if not reference.answers:
            return nan
        # A caption without a word has one empty word, so that it equals a reference without one.
        tokens = caption_tokens(text, self.config.tokens)[:MAX_TOKENS] or [""]
        precision = recall = 0.0
        for answer in reference.answers:
            true = caption_tokens(answer, self.config.tokens)[:MAX_TOKENS] or [""]
            common = common_subsequence(tokens, true)
            precision, recall = max(precision, common / len(tokens)), max(recall, common / len(true))
        if not precision or not recall:
            return 0.0
        return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
