"""The answer prior and checks of bias over answers with planted rates."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from fvl_lightning.evaluation.metrics.accuracy import AccuracyMetric
from fvl_lightning.evaluation.metrics.base import Reference
from fvl_lightning.evaluation.robustness.bias import BiasCheck, bias_checks, letter_of
from fvl_lightning.evaluation.robustness.prior import _half, prior_answers, prior_result
from fvl_lightning.evaluation.statistics.aggregates import aggregate
from fvl_lightning.evaluation.tasks.result import TaskResult, TaskSample

_, OVERALL = AccuracyMetric.averages


def sample(number: int, truth: str | tuple[str, ...], text: str = "", **more: Any) -> TaskSample:
    truths = (truth,) if isinstance(truth, str) else truth
    reference = Reference(truths, choices=more.pop("choices", ()))
    more.setdefault("cluster", str(number // 2))
    return TaskSample(str(number), text, text, float(text in truths), reference, **more)


def metric(samples: Sequence[TaskSample]) -> AccuracyMetric:
    return AccuracyMetric(AccuracyMetric.Config(), {entry.kind for entry in samples})


def result(samples: Sequence[TaskSample]) -> TaskResult:
    return TaskResult("t", "T", "accuracy", OVERALL, aggregate(metric(samples), samples), samples)


def clusters(half: int) -> Iterator[str]:
    """Names of clusters that are in this half of all clusters."""
    return (name for name in map(str, itertools.count()) if _half(sample(0, "", cluster=name)) == half)


def test_each_half_is_answered_with_the_most_frequent_answers_of_the_other() -> None:
    first, second = clusters(0), clusters(1)
    truths = ["red", "Red", "red", "blue", "red"]
    asked = [sample(number, truth, kind="colour", cluster=next(first)) for number, truth in enumerate(truths)]
    truths = ["green", "green", "blue"]
    asked += [sample(number, truth, kind="colour", cluster=next(second)) for number, truth in enumerate(truths, 5)]
    # A kind of one half alone: 7 stands in one cluster, whose questions must not be answered with it.
    one, other = next(first), next(first)
    asked += [sample(number, "7", kind="count", cluster=one) for number in (8, 9)]
    asked += [sample(number, truth, kind="count", cluster=other) for number, truth in ((10, "2"), (11, "3"))]
    assert prior_answers(asked) == ["green"] * 5 + ["red"] * 3 + ["2", "2", "7", "7"]
    assert prior_answers(asked, seen=[sample(0, "four", kind="count")]) == [""] * 8 + ["four"] * 4
    assert prior_answers([sample(0, "yes")]) == [""]


def test_the_prior_of_pairs_of_yes_and_no_is_half_right() -> None:
    asked = [sample(number, ("yes", "no")[number % 2]) for number in range(40)]
    found = prior_result(result(asked), metric(asked))
    assert found.scores.overall == 0.5
    assert found.variation == "prior"
    assert {entry.prediction for entry in found.samples} == {"no"}
    assert sum(entry.score for entry in found.samples) == 20


def test_few_questions_do_not_make_the_prior_too_good() -> None:
    """Six answers are equally likely; the most frequent one of the same 16 questions would be right for a third."""
    generator, right = np.random.default_rng(0), []
    for trial in range(200):
        drawn = generator.integers(6, size=16)
        asked = [sample(number, f"c{truth}", cluster=f"{trial} {number}") for number, truth in enumerate(drawn)]
        answers = prior_answers(asked)
        right.append(np.mean([text in entry.reference.answers for text, entry in zip(answers, asked, strict=True)]))
    assert np.mean(right) == pytest.approx(1 / 6, abs=0.02)  # three standard errors


def test_a_question_with_several_references_counts_once() -> None:
    seen = [sample(0, ("cat",) * 9 + ("dog",)), sample(1, "dog"), sample(2, "dog")]
    assert prior_answers([sample(3, "")], seen) == ["dog"]


def checked(samples: Sequence[TaskSample]) -> dict[tuple[str, str, str], BiasCheck]:
    return {(row.check, row.answer, row.kind): row for row in bias_checks({"m": result(samples)})}


def yes_or_no(share: float, number: int = 400, seed: int = 0) -> list[TaskSample]:
    """Half of the truths are yes; the model says yes to `share` of the questions, whatever the truth."""
    says = np.random.default_rng(seed).random(number) < share
    return [
        sample(i, ("yes", "no")[i % 2], ("No, it is not.", "Yes, it is.")[int(said_yes)], cluster=str(i // 4))
        for i, said_yes in enumerate(says)
    ]


def test_a_planted_yes_bias_is_found_with_its_size() -> None:
    biased = checked(yes_or_no(0.8))["yes", "yes", ""]
    assert biased.biased
    assert (biased.true, biased.questions, biased.clusters) == (0.5, 400, 100)
    assert biased.given == pytest.approx(0.8, abs=0.06)
    assert biased.difference.value == pytest.approx(0.3, abs=0.06)
    assert biased.difference.interval[0] > 0.2
    assert biased.sentence.startswith("m answers 'yes' to ")
    assert biased.sentence.endswith("more often than it is true.")
    against = checked(yes_or_no(0.3))["yes", "yes", ""]
    assert against.sentence.endswith("less often than it is true.")


def test_no_bias_is_claimed_where_there_is_none() -> None:
    claims = [checked(yes_or_no(0.5, 120, seed))["yes", "yes", ""].biased for seed in range(12)]
    assert sum(claims) <= 2  # of 12 at 5 % each, 3 or more have a probability of 2 %


def test_answers_that_are_not_yes_or_no_have_no_yes_check() -> None:
    rows = checked([sample(0, "red", "yes"), sample(1, "blue", "no")])
    assert {check for check, _, _ in rows} == {"most frequent answer"}


def test_leaning_on_the_most_frequent_answer_is_found_by_kind() -> None:
    generator = np.random.default_rng(1)
    colours = generator.choice(["red", "blue", "green"], 300, p=[0.4, 0.3, 0.3])
    made = [sample(i, str(c), "red" if i % 3 else str(c), kind="colour") for i, c in enumerate(colours)]
    made += [sample(300 + i, str(i % 5), str(i % 5), kind="count") for i in range(100)]
    rows = checked(made)
    assert rows["most frequent answer", "red", "colour"].biased
    assert not rows["most frequent answer", "0", "count"].biased
    assert rows["most frequent answer", "the most frequent answer of the kind", ""].biased
    lone = checked([sample(i, str(i % 2), str(i % 2)) for i in range(8)])
    assert [key[1:] for key in lone] == [("0", "")]


def test_a_letter_that_is_chosen_too_often_is_found() -> None:
    generator = np.random.default_rng(2)
    choices = ("a cat", "a dog", "a bird")
    made = []
    for i in range(240):
        truth = choices[i % 3]
        answer = "B. a dog" if generator.random() < 0.4 else truth
        made.append(sample(i, truth, answer, choices=choices, cluster=str(i)))
    rows = {answer: row for (check, answer, _), row in checked(made).items() if check == "letter"}
    assert list(rows) == ["A", "B", "C"]
    assert rows["B"].difference.interval[0] > 0.1
    assert rows["A"].difference.value < 0


@pytest.mark.parametrize(
    ("text", "letter"),
    [("B", "B"), ("(b) a dog", "B"), ("a dog", "B"), ("A dog.", "B"), ("C.", "C"), ("D", ""), ("birds", ""), ("", "")],
)
def test_answers_name_a_letter(text: str, letter: str) -> None:
    assert letter_of(text, ("a cat", "a dog", "a bird")) == letter
