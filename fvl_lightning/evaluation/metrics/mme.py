"""MME: pairs of questions about an image, one with the answer yes and one with the answer no."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import nan
from types import MappingProxyType

from fvl_lightning.core.registry import register
from fvl_lightning.evaluation.metrics.averages import OVER_KINDS, OVER_QUESTIONS
from fvl_lightning.evaluation.metrics.base import KindScores, Reference
from fvl_lightning.evaluation.metrics.collecting import CollectingMetric
from fvl_lightning.evaluation.metrics.texts.yes_no import check_yes_or_no

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
"""Kinds of question whose scores are added to the perception score."""
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
"""Kinds of question whose scores are added to the cognition score."""
LABEL_CHARACTERS = 4
"""Characters at the beginning of an answer in which yes or no is looked for."""


@register("metric", "mme")
class MmeMetric(CollectingMetric):
    """Accuracy of yes and no, accuracy over pairs, and the sums that MME publishes.

    An answer is read as in MME's own script and in lmms-eval: without full stops it is yes or no, y or n, or has one of
    them in its first four characters, yes before no. So "know" counts as no.

    acc_plus is the share of the pairs (Reference.group within a kind) that are right in both questions. A group with a
    single question, as `--limit` may leave it, is no pair and does not count; lmms-eval ends with an error there. The
    score of a kind is 100 times its accuracy over pairs plus 100 times its acc_plus; `perception` and `cognition` are
    the sums of the scores of MME's kinds in each, as far as they were asked.
    """

    title = "MME"
    criterion = "yes or no"
    explanation = "count as right when they begin with yes or no, as the truth"
    averages = MappingProxyType(
        {
            OVER_KINDS: "{title} accuracy, macro average over kinds",
            OVER_QUESTIONS: "{title} accuracy over all questions",
            "acc_plus": "{title} acc+ over all pairs",
            "perception": "{title} perception score",
            "cognition": "{title} cognition score",
        }
    )
    further_bounds = MappingProxyType(
        {"perception": (0.0, 200.0 * len(PERCEPTION)), "cognition": (0.0, 200.0 * len(COGNITION))}
    )

    @dataclass
    class Config:
        """Nothing to set."""

    def prepare(self, references: Iterable[Reference]) -> None:
        """Checks that every truth is yes or no; DataError where one is not."""
        check_yes_or_no("mme", references, _folded)

    def score(self, text: str, truth: str) -> float:
        """Returns 1 for an answer that begins as the truth does, else 0."""
        return float(label(text) == _folded(truth))

    def update(self, kind: str, text: str, reference: Reference) -> None:
        """Adds one answer to a question of this kind."""
        super().update(kind, text, reference)
        if reference.group:
            self.keep(kind, [self.score_answer(text, reference)], [reference.group])

    def compute(self) -> KindScores:
        """Returns accuracy by kind, and the further numbers over pairs; NaN where there are none."""
        groups: dict[tuple[str, str], list[float]] = defaultdict(list)
        for kind, (score,), (group,) in self.kept():
            groups[kind, group].append(score)
        pairs: dict[str, list[list[float]]] = defaultdict(list)
        for (kind, _), scores in groups.items():
            if len(scores) > 1:
                pairs[kind].append(scores)
        further = {
            "acc_plus": _acc_plus([pair for found in pairs.values() for pair in found]),
            "perception": _sum([_points(pairs[kind]) for kind in PERCEPTION if kind in pairs]),
            "cognition": _sum([_points(pairs[kind]) for kind in COGNITION if kind in pairs]),
        }
        return replace(super().compute(), further=further)


def label(text: str) -> str:
    """Returns yes, no, or an empty text for an answer that is neither."""
    text = _folded(text)
    if text in ("y", "n"):
        return {"y": "yes", "n": "no"}[text]
    return next((word for word in ("yes", "no") if word in text[:LABEL_CHARACTERS]), "")


def _folded(text: str) -> str:
    return text.lower().strip().replace(".", "")


def _acc_plus(pairs: list[list[float]]) -> float:
    return sum(min(scores) == 1.0 for scores in pairs) / len(pairs) if pairs else nan


def _points(pairs: list[list[float]]) -> float:
    """Returns the score of a kind, from 0 to 200."""
    accuracy = sum(sum(scores) / len(scores) for scores in pairs) / len(pairs)
    return 100 * (accuracy + _acc_plus(pairs))


def _sum(points: list[float]) -> float:
    return sum(points) if points else nan
