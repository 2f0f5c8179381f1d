"""Checks the truths of questions that are answered by yes or no."""

from collections.abc import Callable, Iterable

from fvl_lightning.core.errors import DataError
from fvl_lightning.evaluation.metrics.base import Reference


def check_yes_or_no(metric: str, references: Iterable[Reference], folded: Callable[[str], str]) -> None:
    """Checks that every question has one true answer, yes or no.

    Args:
        metric: the metric's registered name, for the message.
        references: those of all questions.
        folded: returns a truth as the metric compares it.

    Raises:
        DataError: one has not.
    """
    for reference in references:
        if len(reference.answers) != 1 or folded(reference.answers[0]) not in ("yes", "no"):
            shown = ", ".join(map(repr, reference.answers))[:100] or "no answer"
            where = f"metric {metric}: the answer to {reference.question[:100]!r}"
            raise DataError(f"{where} must be yes or no, not {shown}")
