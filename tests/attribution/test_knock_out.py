"""Planted sources: losses, utilization and gap have the known values, from one pass of the encoder."""

import pytest

from fvl_lightning.attribution.knock_out.answers import knock_out
from fvl_lightning.attribution.knock_out.section import section_of
from fvl_lightning.attribution.knock_out.subsets import subset_name, subsets_of
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.evaluation.answers import answer_questions, other_samples
from fvl_lightning.evaluation.statistics.resampling import unseen
from fvl_lightning.modeling.connector.replacement import Replacement
from tests.attribution.planted import CLASS_OF, SOURCES, planted_run

COPIES = {"signal": 0.5, "copy": 0.5, "noise": 0.0, "hiss": 0.0}
ALONE = {"signal": 0.9, "noise": 0.05, "hiss": 0.05}
BLIND = CLASS_OF.count(0) / len(CLASS_OF)
"""The share of class 0, the answer where the fused features are the mean."""


def test_either_of_two_copies_can_be_missed_and_the_report_says_so() -> None:
    opened = planted_run(COPIES)
    (found,), (zeroed,) = knock_out(opened, ["mean"], "all"), knock_out(opened, ["zero"])
    assert sorted(opened.encoder.images) == list(range(len(CLASS_OF))), "each image is encoded once"
    assert len(found.subsets) == 16
    for each, left in ((found, BLIND), (zeroed, 0.0)):
        own, blind = each.by_kind["class"], each.by_kind["blind"]
        assert own.scores[SOURCES].value == blind.scores[SOURCES].value == 1
        assert {source: loss.value for source, loss in own.losses.items()} == dict.fromkeys(SOURCES, 0.0)
        assert own.losses["copy"].interval[1] == pytest.approx(unseen(len(CLASS_OF), 0.05, 1))
        assert {source: rate.value for source, rate in own.utilization.items()} == dict.fromkeys(SOURCES, 0.0)
        assert own.information_gap.value == 0
        assert own.scores[()].value == left
        assert [own.gains[source].value for source in SOURCES] == [1 - left, 1 - left, 0, 0]
        assert {fall.value for fall in blind.falls.values()} == {0.0}
        assert each.overall.scores[()].value == pytest.approx((left + 1) / 2), "kinds count alike"
    own = found.by_kind["class"]
    assert own.scores["noise", "hiss"].value == BLIND
    assert own.falls["noise", "hiss"].value == 1 - BLIND
    assert own.falls["noise", "hiss"].interval[0] > 0
    section = section_of([found])
    (sentence,) = section.paragraphs[2:]
    assert sentence.startswith(
        "`signal` and `copy` stand in for each other: no loss is shown without `signal` or `copy` alone, but "
        "with both replaced the score falls by 0.250 ("
    ), sentence
    assert section.values["mean"]["kinds"]["class"]["falls"]["noise+hiss"]["value"] == 1 - BLIND
    assert section.tables[0].title.startswith("Each source, its mean")


@pytest.mark.parametrize("how", ["shuffled", "noise"])
def test_a_source_that_alone_informs_has_the_known_utilization(how: Replacement) -> None:
    (found,) = knock_out(planted_run(ALONE), [how])
    own = found.by_kind["class"]
    assert own.scores[tuple(ALONE)].value == 1
    assert own.utilization["signal"].value == own.losses["signal"].value > 0.25
    if how == "shuffled":
        other = other_samples(range(len(CLASS_OF)))
        same = sum(CLASS_OF[one] == CLASS_OF[another] for one, another in other.items()) / len(CLASS_OF)
        assert own.losses["signal"].value == pytest.approx(1 - same)
    assert [own.losses[source].value for source in ("noise", "hiss")] == [0, 0]
    assert own.information_gap.value == own.utilization["signal"].value
    low, high = own.information_gap.interval
    assert low <= own.information_gap.value <= high
    finding = section_of([found]).paragraphs[0]
    assert "without `signal`" in finding
    assert "No loss is shown without `noise` or `hiss`." in finding


def test_all_sources_give_the_answers_of_the_pixels() -> None:
    opened = planted_run(ALONE)
    whole = [answer.text for answer in answer_questions(opened.scoring)]
    assert whole == [question.answer for question in opened.questions]
    (found,) = knock_out(opened)
    assert found.overall.scores[tuple(ALONE)].value == 1


def test_subsets_have_names_and_a_limit() -> None:
    assert [subset_name(kept, "abc") for kept in subsets_of("abc", "single")] == [
        "all sources", "without c", "without b", "without a", "only a", "only b", "only c", "no source"
    ]  # fmt: skip
    assert subsets_of("ab") == subsets_of("ab", "all") == [("a", "b"), ("a",), ("b",), ()]
    with pytest.raises(ConfigError, match=r"^subsets: 7 sources have 128 subsets, at most 64 are asked; take single"):
        subsets_of("abcdefg", "all")
