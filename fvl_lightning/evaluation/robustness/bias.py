"""Biases of a model's answers: towards yes, towards the most frequent answer, and towards a letter of the choices.

Each check compares how often a model gives an answer with how often it is true, on the same questions. A difference
says that the answers lean to one side; it does not say why.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Literal

from fvl_lightning.core.terminal import plural
from fvl_lightning.evaluation.metrics.accuracy import normalised
from fvl_lightning.evaluation.robustness.prior import most_frequent
from fvl_lightning.evaluation.statistics.aggregates import clusters_of
from fvl_lightning.evaluation.statistics.means import mean_estimate
from fvl_lightning.evaluation.statistics.resampling import ALPHA, Estimate
from fvl_lightning.evaluation.tasks.question import ONE_KIND
from fvl_lightning.evaluation.tasks.result import TaskResult, TaskSample

YES, NO = "yes", "no"
MAX_KINDS = 20
"""Kinds of question whose most frequent answers are checked, those with the most questions."""

OF_ITS_KIND = "the most frequent answer of the kind"
"""Text for the answer in a row over questions of several kinds."""

Check = Literal["yes", "most frequent answer", "letter"]


@dataclass(frozen=True)
class BiasCheck:
    """One answer: how often a model gives it, and how often it is true."""

    check: Check
    model: str
    answer: str
    kind: str
    """The kind of the questions; empty for all."""
    questions: int
    clusters: int
    given: float
    """Share of the questions to which the model gives the answer."""
    true: float
    """Share of the questions to which it is the true answer."""
    difference: Estimate
    """given - true; its interval is Bonferroni-adjusted over the rows of one check."""
    sentence: str

    @property
    def biased(self) -> bool:
        """Returns whether a bias is shown: the interval of the difference does not include zero."""
        return self.difference.excludes_zero


def bias_checks(results: Mapping[str, TaskResult], alpha: float = ALPHA) -> list[BiasCheck]:
    """Returns all checks that the questions allow, model by model; an empty list if there are none.

    Args:
        results: {model: its result on the task as it is}.
        alpha: one minus the level of the intervals of a check.
    """
    found = []
    for model, result in results.items():
        for make in (_yes, _prior, _letters):
            rows = make(result.samples)
            found += [row.check(model, alpha / len(rows), alpha) for row in rows]
    return found


@dataclass(frozen=True)
class _Row:
    name: Check
    answer: str
    kind: str
    samples: Sequence[TaskSample]
    gives: Callable[[TaskSample], bool]
    holds: Callable[[TaskSample], bool]

    def check(self, model: str, level: float, alpha: float) -> BiasCheck:
        """Returns the row with an interval of level 1 - `level`; jointly, the check's rows have level 1 - `alpha`."""
        given = [float(self.gives(sample)) for sample in self.samples]
        true = [float(self.holds(sample)) for sample in self.samples]
        clusters = clusters_of(self.samples)
        difference = mean_estimate([one - other for one, other in zip(given, true, strict=True)], clusters, level, 1.0)
        shares = sum(given) / len(given), sum(true) / len(true)
        sentence = self._sentence(model, *shares, difference, alpha)
        return BiasCheck(self.name, model, self.answer, self.kind, len(given), len(set(clusters)), *shares, difference,
                         sentence)  # fmt: skip

    def _sentence(self, model: str, given: float, true: float, difference: Estimate, alpha: float) -> str:
        what = {"yes": "yes-or-no question", "letter": "multiple-choice question"}.get(self.name, "question")
        kind = f" of kind {self.kind}" if self.kind else ""
        low, high = difference.interval
        answer = self.answer if self.answer == OF_ITS_KIND else f"'{self.answer}'"
        numbers = (
            f"{model} answers {answer} to {100 * given:.1f} % of {plural(len(self.samples), what)}{kind}; it is "
            f"true of {100 * true:.1f} % ({100 * difference.value:+.1f} points, {100 * (1 - alpha):g} % interval "
            f"{100 * low:+.1f} to {100 * high:+.1f})"
        )
        if not difference.excludes_zero:
            return f"{numbers}: no bias is shown."
        return f"{numbers}: more often than it is true." if low > 0 else f"{numbers}: less often than it is true."


def _yes(samples: Sequence[TaskSample]) -> list[_Row]:
    """Returns a row over the questions whose references are all yes or no; an empty list without such questions."""
    asked = [sample for sample in samples if _truths(sample) and _truths(sample) <= {YES, NO}]
    return [_Row("yes", YES, "", asked, lambda s: _first_word(s) == YES, lambda s: _truth(s) == YES)] if asked else []


def _prior(samples: Sequence[TaskSample]) -> list[_Row]:
    """Returns a row for all questions with references, and one for each kind where there are several."""
    asked = [sample for sample in samples if sample.reference.answers]
    if not asked:
        return []
    answers = {kind: normalised(text) for kind, text in most_frequent(asked).items()}

    def gives(sample: TaskSample) -> bool:
        return normalised(sample.prediction) == answers[sample.kind]

    def holds(sample: TaskSample) -> bool:
        return _truth(sample) == answers[sample.kind]

    if len(answers) == 1:
        kind, answer = next(iter(answers.items()))
        return [_Row("most frequent answer", answer, "" if kind == ONE_KIND else kind, asked, gives, holds)]
    rows = [_Row("most frequent answer", OF_ITS_KIND, "", asked, gives, holds)]
    for kind, _ in Counter(sample.kind for sample in asked).most_common(MAX_KINDS):
        rows.append(
            _Row("most frequent answer", answers[kind], kind, [s for s in asked if s.kind == kind], gives, holds)
        )
    return rows


def _letters(samples: Sequence[TaskSample]) -> list[_Row]:
    """Returns a row for each letter, on the questions that have an option of that letter."""
    asked = [sample for sample in samples if len(sample.reference.choices) > 1 and sample.reference.answers]
    most = max((len(sample.reference.choices) for sample in asked), default=0)
    return [_letter_row(letter, place, asked) for place, letter in enumerate(ascii_uppercase[:most])]


def _letter_row(letter: str, place: int, asked: Sequence[TaskSample]) -> _Row:
    with_it = [sample for sample in asked if len(sample.reference.choices) > place]
    return _Row(
        "letter", letter, "", with_it,
        lambda s: letter_of(s.prediction, s.reference.choices) == letter,
        lambda s: letter_of(_truth_text(s), s.reference.choices) == letter,
    )  # fmt: skip


def letter_of(text: str, choices: Sequence[str]) -> str:
    """Returns the letter of the option that an answer names, by its text or its letter; empty if it names none."""
    options = [normalised(choice) for choice in choices]
    if normalised(text) in options:
        return ascii_uppercase[options.index(normalised(text))]
    match = re.match(r"\W*([A-Za-z])(?![A-Za-z])", text)
    letters = ascii_uppercase[: len(choices)]
    return match[1].upper() if match and match[1].upper() in letters else ""


def _truths(sample: TaskSample) -> set[str]:
    return {normalised(text) for text in sample.reference.answers}


def _truth_text(sample: TaskSample) -> str:
    """Returns the most frequent reference of a question, the first one in a tie."""
    counts = Counter(map(normalised, sample.reference.answers))
    return max(sample.reference.answers, key=lambda text: counts[normalised(text)])


def _truth(sample: TaskSample) -> str:
    return normalised(_truth_text(sample))


def _first_word(sample: TaskSample) -> str:
    match = re.match(r"\W*(\w+)", sample.prediction.lower())
    return match[1] if match else ""
