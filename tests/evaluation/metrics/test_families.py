"""All metrics of answers: two halves are the whole, texts of strangers cost little, and each family's own numbers."""

from collections.abc import Sequence
from math import isnan
from typing import Any

import pytest
import torch

from fvl_lightning.core import registry
from fvl_lightning.core.errors import DataError
from fvl_lightning.evaluation.metrics.base import AnswerMetric, KindScores, Reference
from fvl_lightning.evaluation.metrics.collecting import CollectingMetric

KINDS = ("existence", "count", "code_reasoning")
YES_NO = [
    (kind, answer, Reference((truth,), group=f"image {number // 2}"))
    for number, (kind, answer, truth) in enumerate(
        [
            ("existence", "yes", "yes"), ("existence", "No.", "no"), ("existence", "maybe", "yes"),
            ("existence", "Yes", "no"), ("count", "no", "yes"), ("count", "no", "no"),
            ("code_reasoning", "YES", "yes"), ("code_reasoning", "no", "no"),
        ]
    )
]  # fmt: skip
NUMBERS = [("existence", "about 3", "4"), ("count", "-1.5", "-2"), ("count", "none", "1"), ("count", "1,200", "1000")]
TEXTS = [
    ("existence", "a red star on a blue ground", ("a red star", "the star is red")),
    ("count", "Two dogs", ("two dogs run",)),
    ("count", "a cat's tail", ("the cat", "a tail of a cat")),
    ("code_reasoning", "", ("a house",)),
    ("code_reasoning", "ein Häuschen 猫", ("a house 猫",)),
]
BOXES = [("count", "[0.1, 0.1, 0.5, 0.5]", "[0.1, 0.1, 0.5, 0.6]"), ("existence", "none", "0, 0, 1, 1")]
CHOICES = [("count", "B", "b"), ("count", "answer: (A)", "blue"), ("existence", "it is red", "A"), ("count", "", "A")]
ANSWERS: dict[str, list[tuple[str, str, Reference]]] = {
    "pope": YES_NO,
    "mme": YES_NO,
    "multiple_choice": [(kind, text, Reference((truth,), choices=("red", "blue"))) for kind, text, truth in CHOICES],
    "iou": [(kind, text, Reference((truth,))) for kind, text, truth in BOXES],
    "regression": [(kind, text, Reference((truth,))) for kind, text, truth in NUMBERS],
    "correlation": [(kind, text, Reference((truth,))) for kind, text, truth in NUMBERS],
}
NUMBERS_ANSWERED = ANSWERS["regression"]
OTHERS = [(kind, text, Reference(truths)) for kind, text, truths in TEXTS]


def build(name: str, **fields: Any) -> AnswerMetric:
    component = registry.component("metric", name)
    return component(component.Config(**fields), KINDS)


def scored(metric: AnswerMetric, answers: Sequence[tuple[str, str, Reference]]) -> KindScores:
    for kind, text, reference in answers:
        metric.update(kind, text, reference)
    return metric.compute()


def further(name: str, answers: Sequence[tuple[str, str, Reference]], **fields: Any) -> dict[str, float]:
    return scored(build(name, **fields), answers).further


SCORED_HERE = [name for name in registry.names("metric") if not registry.component("metric", name).needs]
COLLECTING = [name for name in SCORED_HERE if issubclass(registry.component("metric", name), CollectingMetric)]


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("name", SCORED_HERE)
def test_two_halves_are_the_whole(name: str) -> None:
    """As on two ranks, whose states torchmetrics sums and concatenates; one rank may have no answer."""
    answers = ANSWERS.get(name, OTHERS)
    whole, halves, nothing = build(name), (build(name), build(name)), build(name)
    expected = scored(whole, answers)
    for number, (kind, text, reference) in enumerate(answers):
        halves[number % 2].update(kind, text, reference)
    halves[0].merge_state(halves[1])
    nothing.merge_state(halves[0])
    flat = ("macro", "overall", *expected.further)
    for metric in (halves[0], nothing):
        found = metric.compute()
        assert found.by_kind == pytest.approx(expected.by_kind, nan_ok=True)
        numbers = [found.average(average) for average in flat]
        assert numbers == pytest.approx([expected.average(average) for average in flat], nan_ok=True)
    empty = build(name).compute()
    assert all(isnan(empty.average(average)) or empty.average(average) == 0 for average in flat)
    assert empty.further.keys() == expected.further.keys()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("name", COLLECTING)
def test_a_rank_without_answers_takes_part(name: str) -> None:
    """It sends empty tensors of the types that the other rank sends, which gather needs."""
    answers = ANSWERS.get(name, OTHERS)
    other, nothing = build(name), build(name)
    expected = scored(other, answers)
    sent = [torch.cat(state) if isinstance(state, list) else state for state in other.metric_state.values()]

    def gather(state: torch.Tensor, group: object) -> list[torch.Tensor]:
        received = sent.pop(0)
        assert state.dtype == received.dtype
        return [state, received]

    nothing.dist_sync_fn, nothing.distributed_available_fn = gather, lambda: True
    found = nothing.compute()
    assert found.overall == pytest.approx(expected.overall)
    assert found.further == pytest.approx(expected.further, nan_ok=True)
    assert list(nothing.kept()) == [], "its own again"


@pytest.mark.parametrize("name", SCORED_HERE)
def test_numbers_have_names_and_bounds(name: str) -> None:
    metric, answers = build(name), ANSWERS.get(name, OTHERS)
    metric.prepare([reference for _, _, reference in answers])
    scores = scored(metric, answers)
    for average in metric.averages:
        assert metric.describe(average)
        low, high = metric.bounds_of(average)
        assert low <= scores.average(average) <= high or isnan(scores.average(average))
    own = [metric.score_answer(text, reference) for _, text, reference in answers]
    if metric.is_mean:
        assert scores.overall == pytest.approx(sum(own) / len(own))


STRANGERS = ["a" * 100_000, "[0.1, no " * 10_000, "9" * 100_000, "\ud800\0" * 1_000, "猫.'s" * 10_000]


@pytest.mark.parametrize("name", SCORED_HERE)
def test_a_long_answer_is_scored(name: str) -> None:
    """A time that grows with the square of the length would be minutes."""
    _, _, reference = ANSWERS.get(name, OTHERS)[0]
    metric = build(name)
    metric.prepare([reference])
    for text in STRANGERS:
        metric.update("count", text, reference)
    assert metric.compute().overall != metric.bounds[metric.higher_is_better], "none of them is right"


def test_pope_counts_what_was_answered() -> None:
    found = further("pope", YES_NO)
    assert found["precision"] == 2 / 3
    assert found["recall"] == 0.5, "of four truths yes, one was answered no and one neither yes nor no"
    assert found["yes_rate"] == 3 / 8
    as_there = further("pope", YES_NO, as_lmms_eval=True)
    assert (as_there["recall"], as_there["yes_rate"]) == (2 / 3, 4 / 8)
    assert further("pope", [("count", "Yes, it is.", Reference(("yes",)))], first_word=True)["recall"] == 1


def test_mme_counts_pairs() -> None:
    found = further("mme", YES_NO)
    assert found["acc_plus"] == 2 / 4
    assert found["perception"] == 100 * (1 / 2 + 1 / 2) + 100 * (1 / 2 + 0)
    assert found["cognition"] == 200
    assert isnan(further("mme", YES_NO[:1])["acc_plus"]), "a single question is no pair"
    assert isnan(further("mme", [("count", "no", Reference(("no",)))] * 2)["acc_plus"]), "without groups"


def test_numbers_of_numbers() -> None:
    found = further("regression", NUMBERS_ANSWERED)
    assert found["mae"] == pytest.approx((1 + 0.5 + 1 + 200) / 4)
    assert found["rmse"] == pytest.approx(((1 + 0.25 + 1 + 40_000) / 4) ** 0.5)
    assert found["numbers"] == 3 / 4
    assert found["spearman"] == further("correlation", NUMBERS_ANSWERED)["spearman"] == pytest.approx(1)
    assert isnan(scored(build("correlation"), [("count", "3", Reference((truth,))) for truth in "123"]).overall)


@pytest.mark.parametrize(
    ("text", "overlap"),
    [
        ("[0, 0, 0.5, 1]", 0.5), ("at (0, 0), (0.5, 1).", 0.5), ("2 dogs: 0 0 0.5 1", 0.5), ("[0.5, 0, 0, 1]", 0),
        ("dog<loc_0><loc_0><loc_499><loc_999>", 0.4985), ("<loc_0><loc_0>", 0), ("", 0), ("1 2 3", 0),
    ],
)  # fmt: skip
def test_boxes_are_read(text: str, overlap: float) -> None:
    assert build("iou").score(text, "[0, 0, 1, 1]") == pytest.approx(overlap, abs=1e-3)


def test_boxes_of_the_truth() -> None:
    coco = Reference(("10", "20", "30.0", "40"), row={"width": 100, "height": 200})
    metric = build("iou", unit=1000, pixels=True, truth="corner_and_size")
    metric.prepare([coco])
    assert metric.score_answer("[100, 100, 400, 300]", coco) == 1
    assert further("iou", [("count", "[0, 0, 0.5, 1]", Reference(("0, 0, 1, 1",)))])["accuracy_at_0.5"] == 1
    assert build("iou", as_lmms_eval=True).score("[0.5, 0, 0, 1]", "[0, 0, 1, 1]") == 0


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"), ("(b)", "B"), ("**B**", "B"), ("B. a cat", "B"), ("B) cat", "B"), ("A cat is there", "B"),
        ("the answer is C", "C"), ("It is not A, so the correct option is: (B)", "B"), ("A big dog", "C"),
        ("a black cat", "D"), ("Blue", ""), ("", ""), ("E", ""), ("cat or big dog", ""), ("Answer: D.", "D"),
    ],
)  # fmt: skip
def test_a_letter_is_read(text: str, letter: str) -> None:
    metric, choices = build("multiple_choice"), ("bird", "cat", "big dog", "black cat")
    right = [name for name in "ABCD" if metric.score_answer(text, Reference((name,), choices=choices))]
    assert right == list(letter)


def test_truths_of_multiple_choice() -> None:
    reference = Reference(("1",), choices=("1", "2"))
    assert build("multiple_choice").score_answer("A", reference) == 1, "the text of the first"
    assert build("multiple_choice", truth="index").score_answer("B", reference) == 1
    metric, asked = build("multiple_choice"), Reference(("Downhill",))  # an open question among those with options
    metric.prepare([asked])
    assert [metric.score_answer(text, asked) for text in (" downhill.", "uphill", "B")] == [1, 0, 0]


@pytest.mark.parametrize(
    ("name", "reference", "sentence"),
    [
        ("pope", Reference(("maybe",), "Is it?"), "metric pope: the answer to 'Is it?' must be yes or no, not 'maybe'"),
        ("mme", Reference(()), "metric mme: the answer to '' must be yes or no, not no answer"),
        ("iou", Reference(("left",)), "must be a box [x1, y1, x2, y2], not 'left'"),
        ("regression", Reference(("left",)), "must be a number, not 'left'"),
        ("correlation", Reference(("1", "2")), "must be a number, not '1', '2'"),
        ("multiple_choice", Reference(("C",), choices=("a", "b")), "must be one of the options A, B, not 'C'"),
    ],
)
def test_a_reference_that_a_metric_cannot_compare_with(name: str, reference: Reference, sentence: str) -> None:
    with pytest.raises(DataError) as caught:
        build(name).prepare([reference])
    assert sentence in str(caught.value)


def test_a_caption_is_worth_what_is_rare() -> None:
    metric = build("cider")
    assert isnan(metric.score_answer("a", OTHERS[0][2])), "it needs all references"
    metric.prepare([reference for _, _, reference in OTHERS])
    assert metric.score_answer("a red star", OTHERS[0][2]) > metric.score_answer("a", OTHERS[0][2]) >= 0


def test_vqa_accuracy_of_few_references() -> None:
    assert build("vqa_accuracy").score_answer("The dog", Reference(("dog",))) == 1
    two_of_three = Reference(("dog", "dog", "cat"))
    assert build("vqa_accuracy").score_answer("dog", two_of_three) == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert build("vqa_accuracy", as_lmms_eval=True).score_answer("dog", Reference(("dog",))) == 0


def test_whole_words() -> None:
    assert build("contained").score("a chart", "art") == 1
    assert build("contained", whole_words=True).score("a chart", "art") == 0
    assert build("contained", whole_words=True).score("a chart of art.", "ART") == 1
