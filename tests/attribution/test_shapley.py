"""Shapley values and interactions: against all orders, and the laws that define them."""

from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from fvl_lightning.attribution.retrained.arms import places_of, subset_arms
from fvl_lightning.attribution.retrained.section import section_of
from fvl_lightning.attribution.retrained.shapley import (
    Array,
    all_subsets,
    leave_one_out,
    one_alone,
    shapley_interactions,
    shapley_values,
    worth_table,
)
from fvl_lightning.comparison.result_files.cell import Measurements
from fvl_lightning.comparison.result_files.comparison import Comparison, MlflowEntry, SeedResult
from fvl_lightning.comparison.result_files.statistics import ComparisonStatistics
from fvl_lightning.reporting.section import PER_SOURCE, Section, section_markdown

SOURCES = ("davit", "caption", "ocr", "grounding")
EXACT = 1e-12


def random_table(n: int, *shape: int) -> Array:
    return np.random.default_rng(n).normal(size=(*shape, 2**n))


@pytest.mark.parametrize("n", [1, 2, 4, 6])
def test_values_are_the_mean_gain_over_all_orders_and_add_up(n: int) -> None:
    worth = random_table(n)
    gains = np.zeros(n)
    orders = list(permutations(range(n)))
    for order in orders:
        mask = 0
        for source in order:
            gains[source] += worth[mask | 1 << source] - worth[mask]
            mask |= 1 << source
    np.testing.assert_allclose(shapley_values(worth), gains / len(orders), atol=EXACT, rtol=0)
    many = random_table(n, 3, 2)
    np.testing.assert_allclose(shapley_values(many).sum(-1), many[..., -1] - many[..., 0], atol=EXACT, rtol=0)


def test_an_interaction_is_the_shapley_value_of_a_pair_as_one_less_those_of_each_without_the_other() -> None:
    """The recursion of Grabisch and Roubens: I_ij = phi of (ij) as one player - phi_i without j - phi_j without i."""
    worth, n = random_table(4), 4
    found = shapley_interactions(worth)
    np.testing.assert_array_equal(found, found.T)
    for i in range(n):
        for j in range(i):
            others = [k for k in range(n) if k not in (i, j)]

            def value_of(player: int, others: list[int] = others) -> float:
                """Of a player, a mask, in the game of it and the others."""
                players = [player, *(1 << k for k in others)]
                table = [sum(players[k] for k in range(3) if mask >> k & 1) for mask in range(8)]
                return float(shapley_values(worth[table])[0])

            both = value_of(1 << i | 1 << j) - value_of(1 << i) - value_of(1 << j)
            assert found[i, j] == pytest.approx(both, abs=EXACT)


def test_where_gains_add_up_every_number_is_the_gain_and_interactions_vanish() -> None:
    gains = {"davit": 0.3, "caption": 0.1, "ocr": 0.0, "grounding": -0.05}
    worth = worth_table({subset: 0.2 + sum(gains[s] for s in subset) for subset in all_subsets(SOURCES)}, SOURCES)
    for numbers in (shapley_values(worth), leave_one_out(worth), one_alone(worth)):
        np.testing.assert_allclose(numbers, list(gains.values()), atol=EXACT, rtol=0)
    np.testing.assert_allclose(shapley_interactions(worth), 0, atol=EXACT)


def test_two_copies_share_and_noise_gets_nothing() -> None:
    """One informative source, a copy of it and two of noise: neither copy is missed, each is worth half."""
    worth = worth_table(
        {subset: 0.25 + 0.6 * bool(subset & {"davit", "caption"}) for subset in all_subsets(SOURCES)}, SOURCES
    )
    np.testing.assert_allclose(shapley_values(worth), [0.3, 0.3, 0, 0], atol=EXACT)
    np.testing.assert_allclose(leave_one_out(worth), 0, atol=EXACT)
    np.testing.assert_allclose(one_alone(worth), [0.6, 0.6, 0, 0], atol=EXACT)
    interactions = shapley_interactions(worth)
    assert interactions[0, 1] == pytest.approx(-0.6, abs=EXACT), "they stand in for each other"
    assert np.abs(interactions).sum() == pytest.approx(1.2, abs=EXACT)


def test_leaving_out_needs_only_the_trainings_without_one() -> None:
    every = frozenset(SOURCES)
    worth = worth_table({every: [0.9, 0.8], every - {"ocr"}: [0.7, 0.7]}, SOURCES)
    np.testing.assert_allclose(leave_one_out(worth)[:, 2], [0.2, 0.1], atol=EXACT)
    assert np.isnan(leave_one_out(worth)[:, [0, 1, 3]]).all()
    assert np.isnan(shapley_values(worth)).all()


def test_the_sources_of_an_arm_are_read_from_its_configuration() -> None:
    encoder = {"sources": list(SOURCES)}
    assert places_of({"encoder": encoder, "fusion": {"name": "gated"}}) == SOURCES
    assert places_of({"encoder": encoder, "fusion": {"name": "concat", "repeat": 2}}) == SOURCES * 2
    assert places_of({"encoder": encoder, "fused_sources": [], "fusion": {}}) == ()
    assert places_of({"encoder": encoder, "fused_sources": ["ocr", "ocr"], "fusion": {}}) == ("ocr", "ocr")
    assert places_of({"encoder": {"name": "of_a_plugin"}, "fusion": {}}) is None


def test_arms_of_one_family_at_both_sizes() -> None:
    places = {
        "x": ("ocr",), "whole": SOURCES, "none": (), "four": ("ocr",) * 4, "two": ("ocr",) * 2, "again": ("ocr",),
        "gated": SOURCES, "plugin": None,
    }  # fmt: skip
    differences: dict[str, dict[str, Any]] = {arm: {"fused_sources": [[], []]} for arm in places}
    differences["gated"] = {"fusion.name": ["concat", "gated"]}
    found = subset_arms(places, differences)
    assert found is not None
    ocr, every, nothing = frozenset({"ocr"}), frozenset(SOURCES), frozenset[str]()
    assert found.sources == SOURCES
    assert found.arms["natural"] == {ocr: "x", every: "whole", nothing: "none"}
    assert found.arms["matched"] == {ocr: "four", every: "whole", nothing: "none"}
    assert found.others == ("two", "again", "gated", "plugin")
    assert len(found.missing("natural")) == 13
    assert subset_arms({"whole": SOURCES, "gated": SOURCES}, differences) is None


def measured(by_kind: Mapping[str, float]) -> Measurements:
    scores = {"macro": sum(by_kind.values()) / len(by_kind), "overall": 0.0, "by_kind": dict(by_kind)}
    zero = {"macro": 0.0, "overall": 0.0, "by_kind": {}}
    costs = dict.fromkeys(
        ("image_tokens", "inference_flops", "training_flops", "parameters", "trainable", "tokens_per_second",
         "peak_memory_bytes", "seconds"), 1.0,
    )  # fmt: skip
    controls = dict.fromkeys(("image_zeroed", "image_shuffled", "prior"), zero)
    return Measurements.read({"accuracy": scores, **controls, **costs})


def made_up_results(
    score: Callable[[frozenset[str], int], Mapping[str, float]], subsets: Sequence[frozenset[str]]
) -> tuple[Comparison, dict[str, tuple[str, ...] | None]]:
    """A comparison of five seeds, where an arm's scores by kind follow from its subset, and the places of the arms."""
    places: dict[str, tuple[str, ...] | None] = {
        f"a{number}": tuple(s for s in SOURCES if s in subset) for number, subset in enumerate(subsets)
    }
    seeds = [0, 1, 2, 3, 4]
    cells = [
        SeedResult.read({"arm": f"a{number}", "seed": seed, **measured(score(subset, seed)).plain()})
        for number, subset in enumerate(subsets)
        for seed in seeds
    ]
    results = Comparison(
        name="subsets", level=None, seed=0, seeds=seeds, lineage="frozen_encoder", metric="accuracy/macro",
        mlflow=MlflowEntry(None, "", "", ""), encoder=None, machine={}, arms={}, cells=cells,
        differences={arm: {} for arm in places},
        statistics=ComparisonStatistics.__new__(ComparisonStatistics),
    )  # fmt: skip
    return results, places


def made_up(
    score: Callable[[frozenset[str], int], Mapping[str, float]], subsets: Sequence[frozenset[str]]
) -> Section:
    """The section of such a comparison."""
    results, places = made_up_results(score, subsets)
    return section_of(results, subset_arms(places, results.differences))


def test_the_section_has_values_intervals_and_kinds() -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, (5, 16, 2))
    order = {subset: number for number, subset in enumerate(all_subsets(SOURCES))}

    def score(subset: frozenset[str], seed: int) -> dict[str, float]:
        words, where = noise[seed, order[subset]]
        both = 0.3 + 0.2 * bool(subset & {"davit", "caption"})
        return {"word": both + 0.3 * ("ocr" in subset) + words, "where": both + where}

    section = made_up(score, list(order))
    values = section.values
    assert values[PER_SOURCE] == {s: values["natural"]["whole"]["shapley"][s]["mean"] for s in SOURCES}
    for seed in values["natural"]["whole"]["seeds"].values():
        gain = seed["scores"][" + ".join(SOURCES)] - seed["scores"]["none"]
        assert sum(seed["shapley"].values()) == pytest.approx(gain, abs=EXACT)
    truth = {"davit": 0.1, "caption": 0.1, "ocr": 0.15, "grounding": 0.0}
    for source, worth in truth.items():
        found = values["natural"]["whole"]["shapley"][source]
        assert found["interval"][0] - 0.01 < worth < found["interval"][1] + 0.01
        assert found["interval"][1] - found["interval"][0] < 0.05
    pair = values["natural"]["whole"]["interactions"]["davit + caption"]
    assert pair["interval"][0] < -0.2 < pair["interval"][1] < 0
    text = section_markdown(section)
    assert "`ocr` +0.1" in section.paragraphs[0]
    assert "| word |" in text
    assert list(section.figures) == ["retrained_worths", "retrained_interactions", "retrained_kinds"]
    kinds = next(grid for grid in section.tables if "by kind" in grid.title)
    starred = {row[0]: [cell.endswith("*") for cell in row[2:]] for row in kinds.rows}
    assert starred == {"word": [True, True, True, False], "where": [True, True, False, False]}


def test_what_is_missing_is_one_sentence_and_leave_one_out_is_there() -> None:
    every = frozenset(SOURCES)
    section = made_up(
        lambda subset, seed: {"all": 0.5 + 0.1 * len(subset) + 0.001 * seed * len(subset)},
        [every, *(every - {source} for source in SOURCES[1:])],
    )
    assert "loses: `caption` +0.102 (+0.100 to +0.104)" in section.paragraphs[0]
    (missing,) = [text for text in section.paragraphs if "missing" in text]
    assert missing.startswith("At their own size, Shapley values need all 16 subsets; missing: none, davit, caption,")
    assert "davit" not in section.values[PER_SOURCE]
    assert list(section.figures) == ["retrained_worths"]
