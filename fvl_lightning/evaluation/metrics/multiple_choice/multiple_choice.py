"""Accuracy of multiple-choice questions."""

from collections.abc import Iterable
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Literal

from fvl_lightning.core.errors import DataError
from fvl_lightning.core.registry import register
from fvl_lightning.evaluation.metrics.accuracy import normalised
from fvl_lightning.evaluation.metrics.base import AnswerMetric, Reference
from fvl_lightning.evaluation.metrics.multiple_choice.letters import READINGS

WITHOUT_CHOICES = "ABCDEFGH"
"""Letters that an answer may have where a question names no options."""


@register("metric", "multiple_choice")
class MultipleChoiceMetric(AnswerMetric):
    """Scores 1 for an answer that names the true option by its letter or its text, and 0 for others.

    A task by likelihood gives the letter of the likeliest option as the answer, which every reading takes as it is.
    The readings ai2d, mmbench, mmmu, mmstar and scienceqa are those of lmms-eval, except that an answer which names no
    option is wrong here: lmms-eval takes a random option for MMMU, and asks GPT and then takes a random one for
    MMBench, so that its scores change from run to run.

    Some benchmarks have open questions among those with options. A question without options whose truth is no letter is
    one, and its answer must equal the truth apart from case, white space and a final full stop.
    """

    title = "Multiple choice"
    criterion = "the option named"
    explanation = "count as right when they name the true option"

    @dataclass
    class Config:
        """Options of how answers and truths are read."""

        reading: Literal["letter", "ai2d", "mmbench", "mmmu", "mmstar", "scienceqa"] = "letter"
        """Rule that finds the letter in an answer. letter: the answer is, begins with or names a letter, or contains
        the text of one option; the others are the rules of lmms-eval for these benchmarks."""
        truth: Literal["letter", "index"] = "letter"
        """Form of the references. letter: a letter, or the text of an option; index: the number of the option, the
        first one being 0."""

    def prepare(self, references: Iterable[Reference]) -> None:
        """Checks that every question with options has a true one; raises DataError otherwise."""
        for reference in references:
            if self._is_open(reference):
                continue
            if not reference.answers or not all(self._truth(truth, reference) for truth in reference.answers):
                shown = ", ".join(map(repr, reference.answers))[:100] or "no answer"
                allowed = ", ".join(self._options(reference))
                where = f"the answer to {reference.question[:100]!r}"
                raise DataError(f"metric multiple_choice: {where} must be one of the options {allowed}, not {shown}")

    def score(self, text: str, truth: str) -> float:
        """Returns 1 if the answer to a question without options names the true letter, else 0."""
        return self.score_answer(text, Reference((truth,)))

    def score_answer(self, text: str, reference: Reference) -> float:
        """Returns 1 if the answer names a true option or, for an open question, equals a reference, else 0."""
        if self._is_open(reference):
            return float(normalised(text) in map(normalised, reference.answers))
        found = READINGS[self.config.reading](text, self._options(reference))
        return float(bool(found) and found in {self._truth(truth, reference) for truth in reference.answers})

    def _is_open(self, reference: Reference) -> bool:
        """Returns whether a question is open: it has references, no options, and no reference is a letter."""
        return (
            bool(reference.answers)
            and not reference.choices
            and not any(self._truth(truth, reference) for truth in reference.answers)
        )

    def _options(self, reference: Reference) -> dict[str, str]:
        if reference.choices:
            return dict(zip(ascii_uppercase, reference.choices, strict=False))
        return dict.fromkeys(WITHOUT_CHOICES, "")

    def _truth(self, truth: str, reference: Reference) -> str:
        """Returns the letter of a reference; an empty text if it names no option."""
        truth, options = truth.strip(), self._options(reference)
        if self.config.truth == "index":
            return list(options)[int(truth)] if truth.isdecimal() and int(truth[:3]) < len(options) else ""
        if truth.upper() in options:
            return truth.upper()
        return next((name for name, option in options.items() if option.strip() == truth), "") if truth else ""
