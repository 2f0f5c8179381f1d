"""Token F1, of SQuAD and of free answers in general."""

import string
from collections import Counter
from dataclasses import dataclass

from fvl_lightning.core.registry import register
from fvl_lightning.evaluation.metrics.base import AnswerMetric

_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = frozenset(("a", "an", "the"))


@register("metric", "token_f1")
class TokenF1Metric(AnswerMetric):
    """F1 of the answer's words and the truth's, in lower case without punctuation and articles, as for SQuAD.

    Two texts without a word are equal, and score 1.
    """

    title = "Token F1"
    criterion = "words in common"
    explanation = "score the F1 of their words and those of the truth"

    @dataclass
    class Config:
        """Nothing to set."""

    def score(self, text: str, truth: str) -> float:
        """Returns the harmonic mean of precision and recall of the words."""
        found, true = _words(text), _words(truth)
        if not found or not true:
            return float(found == true)
        common = (found & true).total()
        return 2 * common / (found.total() + true.total())


def _words(text: str) -> Counter[str]:
    words = text.lower().translate(_WITHOUT_PUNCTUATION).split()
    return Counter(word for word in words if word not in _ARTICLES)
