"""Which arms and seeds are tested when cells are missing, and what is said of the others."""

import numpy as np
import pytest

from fvl_lightning.comparison.statistics.complete_cases import Block, complete_block, finite_scores
from fvl_lightning.comparison.statistics.contrasts import contrasts


def scores_of(**seeds: str) -> dict[str, dict[int, float]]:
    """{arm: cells} with a score for each digit of its word."""
    generator = np.random.default_rng(0)
    return {arm: {int(seed): float(generator.random()) for seed in word} for arm, word in seeds.items()}


def what_is_tested(block: Block) -> tuple[str, str]:
    return " ".join(block.arms), "".join(map(str, block.seeds))


def test_a_complete_table_is_tested_as_it_is() -> None:
    scores = scores_of(b="01234", a="43210", c="01234")
    block = complete_block(scores, "a")
    assert what_is_tested(block) == ("a b c", "01234")
    assert not block.reasons
    assert not block.notes
    table = np.array([[scores[arm][seed] for seed in range(5)] for arm in "abc"])
    assert block.tested is not None
    np.testing.assert_array_equal(block.tested.p_holm, contrasts(table).p_holm)


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
    block = complete_block(scores, "a")
    assert what_is_tested(block) == tested
    assert block.tested is not None
    assert set(block.reasons) == set(scores) - set(block.arms)


def test_what_is_left_out_is_said() -> None:
    block = complete_block(scores_of(a="0123", b="01234", c="04", d="01234", e="1234"), "a")
    assert what_is_tested(block) == ("a b d e", "123")
    assert block.reasons == {"c": "c has no score for seeds 1, 2, 3"}
    assert block.notes == ("seed 0 is left out: no score from e", "seed 4 is left out: no score from a")


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
    block = complete_block(scores, "a")
    assert block.tested is None
    assert block.reasons == reasons
    assert not block.notes


def test_scores_that_never_vary_are_not_testable() -> None:
    block = complete_block({"a": dict.fromkeys(range(5), 0.7), "b": dict.fromkeys(range(5), 0.9)}, "a")
    assert block.tested is None
    assert "the same amount for every seed" in block.reasons["b"]


def test_only_what_is_missing_decides() -> None:
    few = scores_of(a="01234", b="01234", c="0123")
    other = {arm: {seed: 100 * score**3 for seed, score in cells.items()} for arm, cells in few.items()}
    assert what_is_tested(complete_block(few, "a")) == what_is_tested(complete_block(other, "a"))


def test_a_score_that_is_no_number_is_missing() -> None:
    assert finite_scores({"a": {0: 0.5, 1: float("nan")}, "b": {0: float("inf")}}) == {"a": {0: 0.5}, "b": {}}
