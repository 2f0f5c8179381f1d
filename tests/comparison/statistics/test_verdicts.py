"""The verdicts of a comparison and their sentences, and the exploratory family."""

from collections.abc import Mapping
from dataclasses import asdict
from math import isnan, nan

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from fvl_lightning.comparison.statistics.contrasts import contrasts
from fvl_lightning.comparison.statistics.verdicts import compare_arms, explore
from fvl_lightning.core.errors import ConfigError

NOISE = np.random.default_rng(3).standard_normal((6, 5)) * 0.01


def scores_with(**means: float) -> dict[str, dict[int, float]]:
    """Five seeds per arm, with a residual SD of about 0.01."""
    return {
        arm: {seed: mean + float(NOISE[row, seed]) for seed in range(5)}
        for row, (arm, mean) in enumerate(means.items())
    }


SCORES = scores_with(concat=0.6, gated=0.7, mean=0.5, attention=0.615, same=0.6)


def test_every_verdict_in_words() -> None:
    scores = {**SCORES, "broken": {0: 0.9, 3: nan}}
    result = compare_arms(scores, "concat", smallest_effect=0.03)
    assert [contrast.arm for contrast in result.contrasts] == ["gated", "mean", "attention", "same", "broken"]
    verdicts = {contrast.arm: contrast.verdict for contrast in result.contrasts}
    assert verdicts == {
        "gated": "better",
        "mean": "worse",
        "attention": "not separated",
        "same": "equivalent",
        "broken": "not testable",
    }
    sentences = {contrast.arm: contrast.sentence for contrast in result.contrasts}
    assert sentences["gated"].startswith("gated is better than concat by +0.")
    assert "95% interval" in sentences["mean"]
    assert "not separated" in sentences["attention"]
    assert result.sensitivity is not None
    assert f"a true difference of {result.sensitivity.detectable:.3g}" in sentences["attention"]
    assert "less than 0.03" in sentences["same"]
    assert sentences["broken"] == "broken against concat is not testable: broken has no score for seeds 1, 2, 3, 4"


def test_the_numbers_are_those_of_the_tables() -> None:
    result = compare_arms(SCORES, "gated", smallest_effect=0.03)
    assert [contrast.arm for contrast in result.contrasts] == ["concat", "mean", "attention", "same"]
    names = ["gated", "concat", "mean", "attention", "same"]
    expected = contrasts(np.array([list(SCORES[arm].values()) for arm in names]))
    equivalent = expected.p_equivalent(0.03)
    for i, contrast in enumerate(result.contrasts):
        assert contrast.estimate == pytest.approx(expected.estimate[i])
        assert contrast.standard_error == pytest.approx(float(expected.standard_error))
        assert contrast.interval == pytest.approx(tuple(expected.interval[i]))
        assert contrast.simultaneous == pytest.approx(tuple(expected.simultaneous[i]))
        numbers = (contrast.p, contrast.p_holm, contrast.p_paired, contrast.p_equivalent)
        assert numbers == pytest.approx((expected.p[i], expected.p_holm[i], expected.p_paired[i], equivalent[i]))
    assert result.tested_seeds == (0, 1, 2, 3, 4)
    assert result.sensitivity is not None
    assert result.sensitivity.degrees == 16
    assert result.sensitivity.residual_sd == pytest.approx(float(expected.residual_sd))
    low, high = result.sensitivity.seeds_needed
    assert 3 <= low < high


def test_arms_are_summed_up_over_all_their_seeds() -> None:
    summary = {arm.arm: arm for arm in compare_arms({**SCORES, "one": {7: 0.25}, "none": {}}, "concat", 0.1).arms}
    assert summary["gated"].mean == pytest.approx(0.7 + NOISE[1].mean())
    assert summary["gated"].sd == pytest.approx(NOISE[1].std(ddof=1))
    assert summary["gated"].seeds == 5
    assert (summary["one"].mean, summary["one"].seeds) == (0.25, 1)
    assert isnan(summary["one"].sd)
    assert isnan(summary["none"].mean)


def test_a_small_difference_that_is_sure_is_still_one_that_does_not_matter() -> None:
    result = compare_arms(SCORES, "concat", smallest_effect=0.5)
    gated = result.contrasts[0]
    assert gated.p_holm < 0.001
    assert gated.verdict == "equivalent"
    assert gated.sentence.endswith("less than 0.5, though not zero")


def test_nothing_testable_keeps_estimates_and_claims_nothing() -> None:
    scores = {"a": {0: 0.5, 1: 0.6, 2: 0.7}, "b": {1: 0.9, 2: 0.8, 3: 0.1}}
    result = compare_arms(scores, "a", 0.05)
    (contrast,) = result.contrasts
    assert contrast.verdict == "not testable"
    assert contrast.estimate == pytest.approx(0.2)
    assert isnan(contrast.p_holm)
    assert result.sensitivity is None
    assert result.tested_seeds == ()
    assert asdict(result)["contrasts"][0]["arm"] == "b"


@pytest.mark.parametrize(
    ("baseline", "effect", "alpha", "sentence"),
    [
        ("concta", 0.1, 0.05, "did you mean 'concat'"),
        ("concat", 0.0, 0.05, "smallest_effect: expected a number above 0, found 0.0"),
        ("concat", nan, 0.05, "smallest_effect: expected a number above 0, found nan"),
        ("concat", 0.1, 5, "alpha: 5 is not between 0 and 1"),
    ],
)
def test_mistakes_are_named(baseline: str, effect: float, alpha: float, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        compare_arms(SCORES, baseline, effect, alpha)


def test_the_exploratory_family_is_adjusted_over_all_groups() -> None:
    constant = {arm: dict.fromkeys(range(5), 1.0) for arm in SCORES}
    groups: Mapping[str, Mapping[str, Mapping[int, float]]] = {
        "colour": SCORES,
        "count": scores_with(concat=0.6, gated=0.61, mean=0.6),
        "always right": constant,
        "asked of others": {"gated": SCORES["gated"], "mean": SCORES["mean"]},
    }
    found = explore(groups, "concat")
    assert [(contrast.group, contrast.arm) for contrast in found] == [
        ("colour", "gated"),
        ("colour", "mean"),
        ("colour", "attention"),
        ("colour", "same"),
        ("count", "gated"),
        ("count", "mean"),
    ]
    expected = multipletests([contrast.p for contrast in found], method="fdr_bh")[1]
    assert [contrast.q for contrast in found] == pytest.approx(list(expected))
    alone = compare_arms(SCORES, "concat", 0.1).contrasts
    assert [contrast.p for contrast in found[:4]] == pytest.approx([contrast.p for contrast in alone])
    assert found[0].interval == pytest.approx(alone[0].interval)


def test_an_exploratory_family_may_be_empty() -> None:
    assert explore({"colour": {"a": {0: 1.0}, "b": {0: 0.5}}}, "a") == ()
