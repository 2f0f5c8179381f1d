"""The answer prior: every question answered with the most frequent answer of its kind, without looking at the image.

Most benchmarks have one public split, so the prior is taken from the questions themselves: the clusters are divided
into two halves by a hash, and each half is answered with the most frequent answers of the other one. Taken from the
same questions, the most frequent of many answers would be right too often where a kind has few questions: of 16
questions with six colours as equally likely answers, one colour is right for about five. Leaving out a question's
cluster alone would be worse: on a set with as many yes as no, what remains has fewer of the question's own answer, and
the prior would always be wrong. If another split is given, the prior is taken from it.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fvl_lightning.evaluation.metrics.accuracy import normalised
from fvl_lightning.evaluation.metrics.base import AnswerMetric
from fvl_lightning.evaluation.statistics.aggregates import aggregate, cluster_of
from fvl_lightning.evaluation.tasks.question import TaskQuestion
from fvl_lightning.evaluation.tasks.result import TaskResult, TaskSample

PRIOR = "prior"
"""The variation of the prior's TaskResult."""

Asked = Sequence[TaskSample | TaskQuestion]


@dataclass
class _Support:
    """A reference answer with its weight, its spellings, and the clusters in which it occurs."""

    weight: float = 0.0
    forms: Counter[str] = field(default_factory=Counter)
    clusters: set[str] = field(default_factory=set)


def prior_answers(asked: Asked, seen: Asked | None = None) -> list[str]:
    """Returns the most frequent answer of each question's kind; an empty text if there is none.

    Each question has weight 1, divided among its reference answers. Ties are broken alphabetically.

    Args:
        asked: the questions.
        seen: questions of another split, from which the answers are taken; None for the other half of `asked`, or for
            the other clusters of a kind that the other half lacks.
    """
    if seen is not None:
        by_kind = most_frequent(seen)
        return [by_kind.get(question.kind, "") for question in asked]
    halves = [most_frequent([question for question in asked if _half(question) != half]) for half in (0, 1)]
    ranked = {kind: _ranked(support) for kind, support in _supports(asked).items()}
    answers = []
    for question in asked:
        others = (support for support in ranked.get(question.kind, []) if support.clusters - {cluster_of(question)})
        rest = next(map(_form, others), "")
        answers.append(halves[_half(question)].get(question.kind, rest))
    return answers


def _half(question: TaskSample | TaskQuestion) -> int:
    return hashlib.blake2b(cluster_of(question).encode(), digest_size=1).digest()[0] % 2


def prior_result(result: TaskResult, metric: AnswerMetric, seen: Asked | None = None) -> TaskResult:
    """Returns the result of the prior on the questions of another result, scored by the same metric.

    Args:
        result: the result of any model on the task as it is.
        metric: the task's metric, built for the kinds of the questions.
        seen: see prior_answers.
    """
    metric.prepare([sample.reference for sample in result.samples])
    answers = prior_answers(result.samples, seen)
    samples = [
        replace(
            sample, output=text, prediction=text,
            score=metric.score_answer(text, sample.reference) if sample.reference.answers else sample.score,
        )
        for sample, text in zip(result.samples, answers, strict=True)
    ]  # fmt: skip
    return replace(result, samples=samples, scores=aggregate(metric, samples), variation=PRIOR)


def most_frequent(asked: Asked) -> dict[str, str]:
    """Returns {kind: its most frequent reference answer}."""
    return {kind: _form(_ranked(support)[0]) for kind, support in _supports(asked).items()}


def _supports(seen: Asked) -> dict[str, dict[str, _Support]]:
    found: dict[str, dict[str, _Support]] = defaultdict(lambda: defaultdict(_Support))
    for question in seen:
        for text in question.reference.answers:
            support = found[question.kind][normalised(text)]
            support.weight += 1 / len(question.reference.answers)
            support.forms[text] += 1
            support.clusters.add(cluster_of(question))
    return found


def _ranked(supports: dict[str, _Support]) -> list[_Support]:
    return [supports[text] for text in sorted(supports, key=lambda text: (-round(supports[text].weight, 9), text))]


def _form(support: _Support) -> str:
    return min(support.forms, key=lambda text: (-support.forms[text], text))
