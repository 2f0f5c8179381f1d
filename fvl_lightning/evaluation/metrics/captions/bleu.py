"""BLEU of one to four words."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp, nan
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from fvl_lightning.core.registry import register
from fvl_lightning.evaluation.metrics.averages import OVER_KINDS, OVER_QUESTIONS
from fvl_lightning.evaluation.metrics.base import AnswerMetric, KindScores, Reference
from fvl_lightning.evaluation.metrics.captions.tokens import MAX_ORDER, NGrams, caption_tokens, ngrams

_TINY, _SMALL = 1e-15, 1e-9
"""Added to numerators and denominators, as pycocoevalcap does, so that none is zero."""


@register("metric", "bleu")
class BleuMetric(AnswerMetric):
    """BLEU-4 over the corpus, and BLEU-1 to BLEU-3, equal to pycocoevalcap's on the same tokens.

    The aggregates sum the n-grams of all captions first, so they are not means of the captions' own scores, which are
    BLEU-4 of one caption. The reference length is that of the reference with the nearest length.
    """

    title = "BLEU-4"
    criterion = "n-grams in common"
    explanation = "are compared with the references by their n-grams of up to four words, summed over all answers"
    averages = MappingProxyType(
        {
            OVER_KINDS: "{title}, macro average over kinds",
            OVER_QUESTIONS: "{title} over all questions",
            "bleu_1": "BLEU-1 over all questions",
            "bleu_2": "BLEU-2 over all questions",
            "bleu_3": "BLEU-3 over all questions",
        }
    )
    is_mean = False

    @dataclass
    class Config:
        """Options of how captions are split."""

        tokens: Literal["ptb", "spaces"] = "ptb"
        """How captions are split. ptb: as those of COCO, in lower case without punctuation; spaces: at white
        space."""

    def __init__(self, config: Any, kinds: Iterable[str]) -> None:
        """Builds a metric over these kinds of question, with the component's Config."""
        super().__init__(config, kinds)
        self.counts: Tensor  # [kinds, n-grams in common by order, n-grams by order, length, reference length]
        counts = torch.zeros(len(self.kinds), 2 * MAX_ORDER + 2, dtype=torch.long)
        self.add_state("counts", counts, dist_reduce_fx="sum")

    def score(self, text: str, truth: str) -> float:
        """Returns BLEU-4 of one caption and one reference."""
        return self.score_answer(text, Reference((truth,)))

    def score_answer(self, text: str, reference: Reference) -> float:
        """Returns BLEU-4 of one caption; NaN without references."""
        return bleu(self._counts(text, reference))[-1] if reference.answers else nan

    def update(self, kind: str, text: str, reference: Reference) -> None:
        """Adds one caption to a question of this kind."""
        index = self.kinds.index(kind)
        if reference.answers:
            self.counts[index] += torch.tensor(self._counts(text, reference))
            self.asked[index] += 1

    def compute(self) -> KindScores:
        """Returns BLEU by kind and over all captions; NaN where there are none."""
        asked = [kind for kind, number in zip(self.kinds, self.asked.tolist(), strict=True) if number]
        by_kind = {kind: bleu(self.counts[self.kinds.index(kind)].tolist())[-1] for kind in asked}
        overall = bleu(self.counts.sum(0).tolist()) if asked else [nan] * MAX_ORDER
        further = {f"bleu_{order}": overall[order - 1] for order in range(1, MAX_ORDER)}
        return KindScores(sum(by_kind.values()) / len(by_kind) if by_kind else nan, overall[-1], by_kind, further)

    def _counts(self, text: str, reference: Reference) -> list[int]:
        tokens = caption_tokens(text, self.config.tokens)
        references = [caption_tokens(answer, self.config.tokens) for answer in reference.answers]
        largest: NGrams = ngrams([])
        for one in references:
            largest |= ngrams(one)
        common = [0] * MAX_ORDER
        for ngram, number in (ngrams(tokens) & largest).items():
            common[len(ngram) - 1] += number
        nearest = min((len(one) for one in references), key=lambda length: (abs(length - len(tokens)), length))
        return [*common, *(max(0, len(tokens) - order) for order in range(MAX_ORDER)), len(tokens), nearest]


def bleu(counts: Sequence[int]) -> list[float]:
    """Returns BLEU-1 to BLEU-4 from the counts that BleuMetric keeps."""
    common, all_of_order, (length, reference_length) = counts[:MAX_ORDER], counts[MAX_ORDER:-2], counts[-2:]
    ratio = (length + _TINY) / (reference_length + _SMALL)
    penalty = exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, scores = 1.0, []
    for order, (hits, number) in enumerate(zip(common, all_of_order, strict=True), start=1):
        product *= (hits + _TINY) / (number + _SMALL)
        scores.append(product ** (1 / order) * penalty)
    return scores
