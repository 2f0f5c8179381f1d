"""CIDEr-D: n-grams in common, weighted by how rare they are among all references."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp, log, nan, sqrt
from typing import Literal

from fvl_lightning.core.registry import register
from fvl_lightning.evaluation.metrics.base import KindScores, Reference
from fvl_lightning.evaluation.metrics.captions.tokens import MAX_ORDER, NGrams, caption_tokens, ngrams
from fvl_lightning.evaluation.metrics.collecting import CollectingMetric

SIGMA = 6.0
"""Standard deviation of the penalty for another length, in words."""

Vector = tuple[list[dict[tuple[str, ...], float]], list[float], int]
"""Weights of n-grams by order, their norms, and the number of pairs of words."""


@register("metric", "cider")
class CiderMetric(CollectingMetric):
    """CIDEr-D, from 0 to 10, equal to pycocoevalcap's on the same tokens.

    N-grams have TF-IDF weights: one that is in the references of many questions has a low weight. `compute` counts
    the answered questions, `score_answer` those given to `prepare` (NaN without it). If both are the same questions,
    the aggregate is the mean of the captions' scores. With a single question, all captions score 0.
    """

    title = "CIDEr"
    criterion = "weighted n-grams in common"
    explanation = "score their n-grams in common with the references, weighted by how rare these are"
    bounds = (0.0, 10.0)

    @dataclass
    class Config:
        """Options of how captions are split."""

        tokens: Literal["ptb", "spaces"] = "ptb"
        """How captions are split. ptb: as those of COCO, in lower case without punctuation; spaces: at white
        space."""

    _rarity: "Rarity | None" = None

    def prepare(self, references: Iterable[Reference]) -> None:
        """Counts, for each n-gram, the questions with it in their references."""
        self._rarity = Rarity([self._ngrams(reference.answers) for reference in references])

    def score(self, text: str, truth: str) -> float:
        """Returns the score of one caption and one reference; NaN before `prepare`."""
        return self.score_answer(text, Reference((truth,)))

    def score_answer(self, text: str, reference: Reference) -> float:
        """Returns the score of one caption; NaN before `prepare`, and without references."""
        if self._rarity is None or not reference.answers:
            return nan
        return self._rarity.score(self._ngrams([text])[0], self._ngrams(reference.answers))

    def update(self, kind: str, text: str, reference: Reference) -> None:
        """Adds one caption to a question of this kind; one without references is left out."""
        if reference.answers:
            self.keep(kind, texts=[text, *reference.answers])

    def compute(self) -> KindScores:
        """Returns the mean scores by kind and over all captions; NaN where there are none."""
        captions = [(kind, self._ngrams(texts)) for kind, _, texts in self.kept()]
        rarity = Rarity([references for _, (_, *references) in captions])
        by_kind: dict[str, list[float]] = defaultdict(list)
        for kind, (caption, *references) in captions:
            by_kind[kind].append(rarity.score(caption, references))
        means = {kind: sum(scores) / len(scores) for kind, scores in sorted(by_kind.items())}
        if not means:
            return KindScores(nan, nan)
        overall = sum(sum(scores) for scores in by_kind.values()) / len(captions)
        return KindScores(sum(means.values()) / len(means), overall, means)

    def _ngrams(self, texts: Iterable[str]) -> list[NGrams]:
        return [ngrams(caption_tokens(text, self.config.tokens)) for text in texts]


class Rarity:
    """Weights of n-grams by the number of questions that have them in their references."""

    def __init__(self, questions: Sequence[Sequence[NGrams]]) -> None:
        """Counts the n-grams of the references of each question."""
        self._with: Counter[tuple[str, ...]] = Counter()
        for references in questions:
            self._with.update(set().union(*references))
        self._log_questions = log(len(questions)) if questions else 0.0

    def score(self, caption: NGrams, references: Sequence[NGrams]) -> float:
        """Returns CIDEr-D of a caption and its references, from 0 to 10."""
        vector = self._vector(caption)
        total = sum(_similarity(vector, self._vector(reference)) for reference in references)
        return 10 * total / MAX_ORDER / len(references)

    def _vector(self, counts: NGrams) -> Vector:
        weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(MAX_ORDER)]
        for ngram, number in counts.items():
            rarity = self._log_questions - log(max(1, self._with[ngram]))
            weights[len(ngram) - 1][ngram] = number * rarity
        norms = [sqrt(sum(weight * weight for weight in order.values())) for order in weights]
        return weights, norms, sum(number for ngram, number in counts.items() if len(ngram) == 2)


def _similarity(one: Vector, other: Vector) -> float:
    """Returns the sum over orders of the clipped cosine of two captions, smaller where their lengths differ."""
    penalty = exp(-((one[2] - other[2]) ** 2) / (2 * SIGMA**2))
    total = 0.0
    for weights, references, norm, reference_norm in zip(one[0], other[0], one[1], other[1], strict=True):
        shared = ((weight, references[ngram]) for ngram, weight in weights.items() if ngram in references)
        common = sum(min(weight, reference) * reference for weight, reference in shared)
        if norm and reference_norm:
            total += common / (norm * reference_norm) * penalty
    return total
