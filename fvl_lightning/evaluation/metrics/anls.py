"""Average normalised Levenshtein similarity, of DocVQA, InfoVQA and ST-VQA."""

from dataclasses import dataclass

from fvl_lightning.core.config.fields import number
from fvl_lightning.core.registry import register
from fvl_lightning.evaluation.metrics.base import AnswerMetric
from fvl_lightning.evaluation.metrics.texts.distances import MAX_CHARACTERS, edit_distance


@register("metric", "anls")
class AnlsMetric(AnswerMetric):
    """One minus the normalised edit distance; 0 for a similarity under the threshold.

    Case and white space are normalised before edits are counted, but the longer text's length is taken before that,
    as in the challenges' script and in lmms-eval. Texts are cut at 20,000 characters.
    """

    title = "ANLS"
    criterion = "edit similarity"
    explanation = "score one minus the share of characters to edit, or 0 where that is under a half"

    @dataclass
    class Config:
        """Options of the similarity."""

        threshold: float = number(0.5, at_least=0, at_most=1)
        """Similarity under which an answer scores 0."""

    def score(self, text: str, truth: str) -> float:
        """Returns the similarity, or 0 where it is under the threshold."""
        text, truth = text[:MAX_CHARACTERS], truth[:MAX_CHARACTERS]
        length = max(len(text.upper()), len(truth.upper()))
        if not length:
            return 1.0
        folded, true = (" ".join(part.lower().split()) for part in (text, truth))
        if 1 - abs(len(folded) - len(true)) / length < self.config.threshold:
            return 0.0  # so many characters must be added at least
        similarity = 1 - edit_distance(folded, true) / length
        return similarity if similarity >= self.config.threshold else 0.0
