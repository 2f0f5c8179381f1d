"""Which arms and seeds are tested when cells are missing, and what is said of the others."""

import numpy as np
import pytest

from fvl_lightning.comparison.statistics.complete_cases import CompleteCases, complete_cases, finite_scores
from fvl_lightning.comparison.statistics.contrasts import contrasts


def scores_of(**seeds: str) -> dict[str, dict[int, float]]:
    """{arm: cells} with a score for each digit of its word."""
    generator = np.random.default_rng(0)
    return {arm: {int(seed): float(generator.random()) for seed in word} for arm, word in seeds.items()}


def what_is_tested(cases: CompleteCases) -> tuple[str, str]:
    return " ".join(cases.arms), "".join(map(str, cases.seeds))


def test_a_complete_table_is_tested_as_it_is() -> None:
    scores = scores_of(b="01234", a="43210", c="01234")
    cases = complete_cases(scores, "a")
    assert what_is_tested(cases) == ("a b c", "01234")
    assert not cases.reasons
    assert not cases.notes
    table = np.array([[scores[arm][seed] for seed in range(5)] for arm in "abc"])
    assert cases.tested is not None
    np.testing.assert_array_equal(cases.tested.p_holm, contrasts(table).p_holm)


@pytest.mark.parametrize(
    ("scores", "tested"),
    [
        (scores_of(a="01234", b="01234", c="0123"), ("a b c", "0123")),
        (scores_of(a="01234", b="01234", c="01"), ("a b", "01234")),
        (scores_of(a="01234", b="01234", c="01", d="12", e="0123"), ("a b e", "0123")),
        (scores_of(a="01234", b="01234", c="01", d="01234", e="23"), ("a b d", "01234")),
        (scores_of(a="0123", b="01234", c="01234"), ("a b c", "0123")),
        (scores_of(a="01234", b="", c="01234"), ("a c", "01234")),
    ],
)
def test_the_largest_part_without_a_gap_is_tested(scores: dict[str, dict[int, float]], tested: tuple[str, str]) -> None:
    cases = complete_cases(scores, "a")
    assert what_is_tested(cases) == tested
    assert cases.tested is not None
    assert set(cases.reasons) == set(scores) - set(cases.arms)


def test_what_is_left_out_is_said() -> None:
    cases = complete_cases(scores_of(a="0123", b="01234", c="04", d="01234", e="1234"), "a")
    assert what_is_tested(cases) == ("a b d e", "123")
    assert cases.reasons == {"c": "c has no score for seeds 1, 2, 3"}
    assert cases.notes == ("seed 0 is left out: no score from e", "seed 4 is left out: no score from a")


@pytest.mark.parametrize(
    ("scores", "reasons"),
    [
        (scores_of(a="0123", b="0123"), {"b": "2 arms need at least 5 seeds in common and have 4"}),
        (scores_of(a="01", b="01", c="01"), dict.fromkeys("bc", "3 arms need at least 3 seeds in common and have 2")),
        (scores_of(a="", b="01234"), {"b": "a has no score"}),
        (scores_of(a="01234", b=""), {"b": "b has no score for seeds 0, 1, 2, 3, 4"}),
        (scores_of(a="01", b="23"), {"b": "b has no score for seeds 0, 1"}),
        (scores_of(a="01234"), {}),
    ],
)
def test_what_is_not_testable_is_said(scores: dict[str, dict[int, float]], reasons: dict[str, str]) -> None:
    cases = complete_cases(scores, "a")
    assert cases.tested is None
    assert cases.reasons == reasons
    assert not cases.notes


def test_scores_that_never_vary_are_not_testable() -> None:
    cases = complete_cases({"a": dict.fromkeys(range(5), 0.7), "b": dict.fromkeys(range(5), 0.9)}, "a")
    assert cases.tested is None
    assert "the same amount for every seed" in cases.reasons["b"]


def test_only_what_is_missing_decides() -> None:
    few = scores_of(a="01234", b="01234", c="0123")
    other = {arm: {seed: 100 * score**3 for seed, score in cells.items()} for arm, cells in few.items()}
    assert what_is_tested(complete_cases(few, "a")) == what_is_tested(complete_cases(other, "a"))


def test_a_score_that_is_no_number_is_missing() -> None:
    assert finite_scores({"a": {0: 0.5, 1: float("nan")}, "b": {0: float("inf")}}) == {"a": {0: 0.5}, "b": {}}
