"""Contained match: the share of answers that contain the truth."""

from dataclasses import dataclass

from fvl_lightning.core.registry import register
from fvl_lightning.evaluation.metrics.base import AnswerMetric


@register("metric", "contained")
class ContainedMetric(AnswerMetric):
    """Scores 1 for an answer that contains the truth, and 0 for others; case and repeated white space are ignored."""

    title = "Contained match"
    criterion = "truth contained in the answer"
    explanation = "count as right when they contain the truth after lower-casing, with white space folded"

    @dataclass
    class Config:
        """Options of the match."""

        whole_words: bool = False
        """Whether the truth must occur as whole words, so that "art" is not in "a chart". Not for scripts that
        are written without spaces."""

    def score(self, text: str, truth: str) -> float:
        """Returns 1 for an answer that contains the truth, else 0; an empty truth is contained in an empty answer."""
        text, truth = (" ".join(part.lower().split()) for part in (text, truth))
        if not truth:
            return float(not text)
        if not self.config.whole_words:
            return float(truth in text)
        start = text.find(truth)
        while start >= 0:
            end = start + len(truth)
            before, after = text[max(0, start - 1) : start] + truth[0], truth[-1] + text[end : end + 1]
            if not (_is_word(before) or _is_word(after)):
                return 1.0
            start = text.find(truth, end)  # places that overlap are skipped: the time stays linear
        return 0.0


def _is_word(pair: str) -> bool:
    """Returns whether both characters of a pair belong to one word; at either end of the text there is only one."""
    return len(pair) == 2 and pair.isalnum()
