"""The statistics of a comparison, on simulated tables of scores and beside statsmodels and scipy.

A simulated score is arm + seed + residual with a residual SD of 1, so that effects are in residual SDs. With 10,000
tables an error rate of 5 % is known to 0.2 points (one standard error).
"""

import gc
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from fvl_lightning.comparison.statistics.contrasts import (
    MAX_SEEDS,
    Contrasts,
    contrasts,
    detectable_difference,
    min_seeds,
    sd_interval,
    seeds_needed,
)
from fvl_lightning.comparison.statistics.multiple_testing import holm

Array = NDArray[np.float64]

TABLES = 10_000
SIZES = [(2, 5), (2, 10), (3, 3), (3, 5), (3, 10), (6, 3), (6, 5), (6, 10)]
"""(arms, seeds) that are testable, of 2, 3 and 6 arms and 3, 5 and 10 seeds."""
every_size = pytest.mark.parametrize(("arms", "seeds"), SIZES)


def simulated(arms: int, seeds: int, effects: dict[int, float] | None = None, tables: int = TABLES) -> Array:
    """Tables `[tables, arms, seeds]`; arm 0 is the baseline, and seeds move all arms by three times the residual."""
    generator = np.random.default_rng([arms, seeds])
    scores = generator.standard_normal((tables, arms, seeds)) + 3 * generator.standard_normal((tables, 1, seeds))
    for arm, effect in (effects or {}).items():
        scores[:, arm] += effect
    return scores


def rate(happened: NDArray[np.bool_]) -> float:
    return float(happened.mean())


def covered(interval: Array, truth: float) -> NDArray[np.bool_]:
    return (interval[..., 0] <= truth) & (truth <= interval[..., 1])


@every_size
def test_arms_that_are_alike_are_separated_in_at_most_one_of_twenty_comparisons(arms: int, seeds: int) -> None:
    result = contrasts(simulated(arms, seeds))
    assert 0.03 < rate((result.p_holm <= 0.05).any(-1)) <= 0.055
    assert 0.035 < rate((result.p_paired <= 0.05).any(-1)) <= 0.055
    assert rate(result.p <= 0.05) == pytest.approx(0.05, abs=0.005)


@pytest.mark.parametrize(("arms", "seeds"), [size for size in SIZES if size[0] > 2])
@pytest.mark.parametrize("effect", [1.0, 3.0, 100.0])
def test_arms_that_differ_do_not_loosen_the_test_of_those_that_do_not(arms: int, seeds: int, effect: float) -> None:
    result = contrasts(simulated(arms, seeds, {1: effect}))
    assert rate((result.p_holm[:, 1:] <= 0.05).any(-1)) <= 0.055


@every_size
def test_intervals_hold_the_true_difference_as_often_as_they_say(arms: int, seeds: int) -> None:
    result = contrasts(simulated(arms, seeds, {1: 2.0}))
    assert 0.94 <= rate(covered(result.interval[:, 0], 2.0)) <= 0.96
    others = covered(result.interval[:, 1:], 0.0)
    assert others.size == 0 or 0.94 <= rate(others) <= 0.96
    together = covered(result.simultaneous[:, 0], 2.0) & covered(result.simultaneous[:, 1:], 0.0).all(-1)
    assert 0.945 <= rate(together) <= 0.98


def reference_power(arms: int, seeds: int, effect: float) -> float:
    """Power for one arm's effect: from the sampling distributions, with Holm's procedure as the closed test it is."""
    generator = np.random.default_rng(7)
    means = generator.standard_normal((50_000, arms)) / np.sqrt(seeds) + effect * (np.arange(arms) == 1)
    degrees = (arms - 1) * (seeds - 1)
    variance = generator.chisquare(degrees, len(means)) / degrees
    t = (means[:, 1:] - means[:, :1]) / np.sqrt(2 * variance / seeds)[:, None]
    p = 2 * stats.t.sf(np.abs(t), degrees)
    rejected = np.ones(len(means), dtype=bool)
    for size in range(arms - 1):
        for others in combinations(range(1, arms - 1), size):
            family = [0, *others]
            rejected &= p[:, family].min(-1) <= 0.05 / len(family)
    return rate(rejected & (t[:, 0] > 0))


@every_size
@pytest.mark.parametrize("effect", [1, 2, 3])
def test_power_is_that_of_the_reference(arms: int, seeds: int, effect: int) -> None:
    result = contrasts(simulated(arms, seeds, {1: effect}))
    power = rate((result.p_holm[:, 0] <= 0.05) & (result.estimate[:, 0] > 0))
    assert power == pytest.approx(reference_power(arms, seeds, effect), abs=0.02)
    if arms == 2:
        paired = TTestPower().power(effect_size=effect / np.sqrt(2), nobs=seeds, alpha=0.05)
        assert power == pytest.approx(paired, abs=0.02)


def test_pooling_is_what_makes_six_arms_and_three_seeds_worth_comparing() -> None:
    result = contrasts(simulated(6, 3, {1: 3}))
    assert rate(result.p_holm[:, 0] <= 0.05) == pytest.approx(0.68, abs=0.02)
    assert rate(result.p_paired[:, 0] <= 0.05) == pytest.approx(0.13, abs=0.02)


def check_against_statsmodels(scores: Array, result: Contrasts, place: int) -> None:
    """One table: least squares with arms and seeds as factors, Holm's adjustment, paired tests."""
    arm, seed = np.indices(scores.shape).reshape(2, -1)
    factors = [
        np.ones_like(arm),
        *(arm == n for n in range(1, len(scores))),
        *(seed == n for n in range(1, seed[-1] + 1)),
    ]
    fit = OLS(scores.ravel(), np.column_stack(factors).astype(float)).fit()
    places = np.arange(1, len(scores))
    close = {"rtol": 1e-10, "atol": 1e-10}
    np.testing.assert_allclose(result.estimate[place], fit.params[places], **close)
    np.testing.assert_allclose(result.standard_error[place], fit.bse[places], **close)
    np.testing.assert_allclose(result.residual_sd[place], np.sqrt(fit.mse_resid), **close)
    np.testing.assert_allclose(result.p[place], fit.pvalues[places], **close)
    np.testing.assert_allclose(result.interval[place], fit.conf_int(0.05)[places], **close)
    np.testing.assert_allclose(result.simultaneous[place], fit.conf_int(0.05 / len(places))[places], **close)
    np.testing.assert_allclose(result.p_holm[place], multipletests(fit.pvalues[places], method="holm")[1], **close)
    paired = [stats.ttest_rel(scores[number], scores[0]).pvalue for number in places]
    np.testing.assert_allclose(result.p_paired[place], multipletests(paired, method="holm")[1], **close)
    above, below = ((fit.params[places] - bound) / fit.bse[places] for bound in (-1.5, 1.5))
    largest = np.maximum(stats.t.sf(above, fit.df_resid), stats.t.cdf(below, fit.df_resid))
    adjusted = multipletests(largest, method="holm")[1]
    np.testing.assert_allclose(result.p_equivalent(1.5)[place], adjusted, **close)
    assert result.degrees == fit.df_resid


@pytest.fixture
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """multipletests collects garbage in every call, which takes a tenth of a second each time in a test run."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


@pytest.mark.usefixtures("no_collection")
@every_size
def test_every_number_equals_statsmodels(arms: int, seeds: int) -> None:
    scores = simulated(arms, seeds, {1: 1.0}, tables=20)
    result = contrasts(scores)
    for place, table in enumerate(scores):
        check_against_statsmodels(table, result, place)


@pytest.mark.slow
@pytest.mark.usefixtures("no_collection")
@every_size
def test_every_number_of_many_tables_equals_statsmodels(arms: int, seeds: int) -> None:
    scores = simulated(arms, seeds, {1: 1.0}, tables=500)
    result = contrasts(scores)
    for place, table in enumerate(scores):
        check_against_statsmodels(table, result, place)


def test_two_arms_are_the_paired_t_test() -> None:
    baseline, arm = simulated(2, 5, tables=1)[0]
    result = contrasts(np.stack([baseline, arm]))
    paired = stats.ttest_rel(arm, baseline)
    assert result.p[0] == pytest.approx(paired.pvalue, abs=1e-12)
    assert result.interval[0] == pytest.approx(list(paired.confidence_interval()), abs=1e-12)
    assert result.p_equivalent(2.0)[0] == pytest.approx(ttost_paired(arm, baseline, -2.0, 2.0)[0], abs=1e-12)


@every_size
@pytest.mark.parametrize("effect", [3.0, -3.0])
def test_a_difference_that_just_matters_is_seldom_called_equivalent(arms: int, seeds: int, effect: float) -> None:
    at_boundary = dict.fromkeys(range(1, arms), effect)
    together = contrasts(simulated(arms, seeds, at_boundary)).p_equivalent(3.0)
    assert rate((together <= 0.05).any(-1)) <= 0.055
    alone = contrasts(simulated(arms, seeds, {1: effect})).p_equivalent(3.0)
    assert rate(alone[:, 0] <= 0.05) <= 0.055
    # With the others well inside, the test of the one at the boundary is at its full level.
    if seeds == 10:
        assert rate(alone[:, 0] <= 0.05) >= 0.04


@pytest.mark.parametrize(("arms", "seeds"), SIZES)
def test_a_detectable_difference_is_found_with_the_power_named(arms: int, seeds: int) -> None:
    effect = float(detectable_difference(np.array(1.0), arms, seeds))
    result = contrasts(simulated(arms, seeds, {1: effect}))
    # Holm gains a little over its first step, at which the difference is worked out.
    assert 0.785 <= rate(result.p_holm[:, 0] <= 0.05) <= 0.835


@pytest.mark.parametrize("arms", [2, 3, 6, 7])
@pytest.mark.parametrize("difference", [0.01, 0.3, 1.0, 5.0])
def test_the_seeds_needed_are_the_fewest_that_do(arms: int, difference: float) -> None:
    def power(seeds: int) -> float:
        degrees = (arms - 1) * (seeds - 1)
        critical = stats.t.isf(0.05 / (arms - 1) / 2, degrees)
        return float(stats.nct.sf(critical, degrees, difference / np.sqrt(2 / seeds)))

    needed = int(seeds_needed(np.array(1.0), difference, arms))
    assert power(needed) >= 0.8 - 1e-6
    assert needed == min_seeds(arms) or power(needed - 1) < 0.8


@pytest.mark.parametrize(("arms", "seeds"), [(2, 5), (3, 3), (6, 5)])
def test_the_range_of_seeds_needed_holds_the_true_number(arms: int, seeds: int) -> None:
    result = contrasts(simulated(arms, seeds, tables=2500))
    needed = seeds_needed(sd_interval(result.residual_sd, result.degrees), 0.2, arms)
    truth = int(seeds_needed(np.array(1.0), 0.2, arms))
    inside = (needed[:, 0] <= truth) & (truth <= needed[:, 1])
    assert 0.94 <= rate(inside) <= 0.965


def test_a_difference_that_no_one_could_find_needs_very_many_seeds() -> None:
    assert int(seeds_needed(np.array(1.0), 1e-300, 6)) == MAX_SEEDS
    assert 10**9 < int(seeds_needed(np.array(1.0), 1e-5, 6)) < MAX_SEEDS


def test_the_range_of_seeds_does_not_look_at_the_differences() -> None:
    without, with_effect = (contrasts(simulated(3, 5, effects, tables=1)) for effects in ({}, {1: 5.0}))
    assert with_effect.residual_sd == pytest.approx(without.residual_sd)


def test_from_which_sizes_on_there_is_a_test() -> None:
    assert [min_seeds(arms) for arms in (2, 3, 4, 6, 7, 20)] == [5, 3, 3, 3, 3, 3]


def test_below_four_degrees_of_freedom_the_sd_is_not_known_to_a_factor_of_three() -> None:
    highest = [float(sd_interval(np.array(1.0), degrees)[1]) for degrees in (3, 4)]
    assert highest[0] > 3 > highest[1]


@pytest.mark.parametrize("arms", [3, 6, 10, 20])
def test_with_two_seeds_even_three_sds_are_missed_more_often_than_found(arms: int) -> None:
    assert rate(contrasts(simulated(arms, 2, {1: 3.0})).p_holm[:, 0] <= 0.05) < 0.5
    assert rate(contrasts(simulated(arms, 3, {1: 3.0})).p_holm[:, 0] <= 0.05) > 0.5


def test_a_restless_baseline_breaks_the_pooled_test_and_not_the_paired_one() -> None:
    generator = np.random.default_rng(0)
    scores = generator.standard_normal((TABLES, 7, 5))
    scores[:, 0] *= 2
    result = contrasts(scores)
    assert rate((result.p_holm <= 0.05).any(-1)) == pytest.approx(0.11, abs=0.01)
    assert rate((result.p_paired <= 0.05).any(-1)) <= 0.055


@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(3, 6), st.floats(-100, 100), st.floats(0.1, 10))
def test_only_differences_within_a_seed_count(number: int, arms: int, seeds: int, shift: float, scale: float) -> None:
    generator = np.random.default_rng(number)
    scores = generator.standard_normal((arms, seeds))
    result = contrasts(scores)
    moved = contrasts(scale * scores + shift * generator.standard_normal(seeds))
    np.testing.assert_allclose(moved.p_holm, result.p_holm, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(moved.interval, scale * result.interval, rtol=1e-6, atol=1e-9)


def test_the_baseline_may_stand_anywhere() -> None:
    scores = simulated(4, 5, {1: 1.0}, tables=2)
    first, last = contrasts(scores), contrasts(scores[:, [1, 2, 3, 0]], baseline=3)
    np.testing.assert_allclose(first.p_holm, last.p_holm)
    np.testing.assert_allclose(first.estimate, last.estimate)


@pytest.mark.parametrize("scores", [[[0.7] * 5, [0.9] * 5], [[0.1, 0.2, 0.3], [0.3, 0.4, 0.5], [1.1, 1.2, 1.3]]])
def test_scores_without_chance_in_them_are_not_certain(scores: list[list[float]]) -> None:
    result = contrasts(np.array(scores))
    assert np.isnan(result.residual_sd)
    assert np.isnan(result.p_holm).all()
    assert np.isnan(result.p_equivalent(0.01)).all()


def test_one_pair_that_never_varies_leaves_the_others_their_paired_tests() -> None:
    scores = simulated(3, 5, tables=1)[0]
    scores[1] = scores[0]
    result = contrasts(scores)
    assert np.isnan(result.p_paired[0])
    assert result.p_paired[1] == pytest.approx(min(1.0, 2 * stats.ttest_rel(scores[2], scores[0]).pvalue))
    assert result.p_holm[0] == 1


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("members", [1, 2, 5, 8])
def test_holm_equals_statsmodels(members: int) -> None:
    p = np.random.default_rng(members).random((50, members)).round(2)  # rounded for ties
    expected = np.stack([multipletests(row, method="holm")[1] for row in p])
    np.testing.assert_allclose(holm(p), expected, atol=1e-12)
