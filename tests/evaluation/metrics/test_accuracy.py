"""Accuracy by exact match: one answer, the averages over kinds and questions, and states that processes add up."""

from math import isnan

import pytest

from fvl_lightning.evaluation.metrics.accuracy import AccuracyMetric, normalised
from fvl_lightning.evaluation.metrics.base import KindScores, Reference


def metric(*kinds: str) -> AccuracyMetric:
    return AccuracyMetric(AccuracyMetric.Config(), kinds)


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("red", "red"),
        ("  Red\n circle ", "red circle"),
        ("Red.", "red"),
        ("Red .", "red"),
        ("3.5", "3.5"),
        ("a. b", "a. b"),
        (".", ""),
        ("", ""),
    ],
)
def test_normalised(text: str, folded: str) -> None:
    assert normalised(text) == folded
    assert metric().score(text, folded) == 1
    assert metric().is_best(text, Reference((folded,)))


def test_a_similar_answer_is_wrong() -> None:
    assert metric().score("reds", "red") == 0
    assert not metric().is_best("", Reference(("red",)))


ANSWERS = [("colour", True), ("colour", False), ("colour", True), ("count", False), ("word", True), ("word", True)]
EXPECTED = KindScores(
    macro=pytest.approx((2 / 3 + 0 + 1) / 3),
    overall=pytest.approx(4 / 6),
    by_kind={"colour": pytest.approx(2 / 3), "count": 0.0, "word": 1.0},
)


def add(scores: AccuracyMetric, kind: str, right: bool) -> None:
    scores.update(kind, "yes" if right else "no", Reference(("yes",)))


def test_accuracy_is_per_kind_and_macro_over_kinds() -> None:
    scores = metric("word", "count", "colour", "never asked")
    for kind, right in ANSWERS:
        add(scores, kind, right)
    assert scores.compute() == EXPECTED


def test_two_halves_are_the_whole() -> None:
    """As on two processes, whose states torchmetrics adds."""
    whole, halves = metric("colour", "count", "word"), [metric("word", "colour", "count")]
    halves.append(metric("count", "word", "colour"))
    for number, (kind, right) in enumerate(ANSWERS):
        add(whole, kind, right)
        add(halves[number % 2], kind, right)
    assert halves[0]._reductions.keys() == {"total", "asked"}
    assert {reduction.__name__ for reduction in halves[0]._reductions.values()} == {"dim_zero_sum"}
    halves[0].total += halves[1].total
    halves[0].asked += halves[1].asked
    assert halves[0].compute() == whole.compute() == EXPECTED


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_a_metric_starts_again() -> None:
    scores = metric("colour")
    add(scores, "colour", True)
    scores.reset()
    nothing = scores.compute()
    assert isnan(nothing.macro)
    assert isnan(nothing.overall)
    assert nothing.by_kind == {}, "no answer is not a wrong one"
