"""What a comparison over seeds shows, in words: one verdict per arm against the declared baseline.

The method is in statistics.py and docs/statistics.md. Scores are those of the one declared metric, higher is better;
kinds of question and further benchmarks go through `explore`, whose results suggest and decide nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf, nan
from typing import Literal

import numpy as np
from scipy import stats

from fvl_lightning.comparison.statistics.complete_cases import Scores, complete_block, finite_scores
from fvl_lightning.comparison.statistics.contrasts import (
    POWER,
    Contrasts,
    detectable_difference,
    sd_interval,
    seeds_needed,
)
from fvl_lightning.core.errors import ConfigError, unknown_name

Verdict = Literal["better", "worse", "equivalent", "not separated", "not testable"]
Interval = tuple[float, float]

EXPLORATORY = "exploratory, adjusted by Benjamini-Hochberg: a hint, to be confirmed with new seeds"
"""What stands over the results of `explore` wherever they are shown."""


@dataclass(frozen=True)
class ArmSummary:
    """An arm over all its seeds; the SD holds what a seed does to every arm alike, and is NaN for a single seed."""

    arm: str
    mean: float
    sd: float
    seeds: int


@dataclass(frozen=True)
class Contrast:
    """Arm minus baseline, as in statistics.Contrasts; "not testable" has only the estimate, on the seeds both share."""

    arm: str
    estimate: float
    verdict: Verdict
    sentence: str
    standard_error: float = nan
    interval: Interval = (nan, nan)
    simultaneous: Interval = (nan, nan)
    p: float = nan
    p_holm: float = nan
    p_paired: float = nan
    p_equivalent: float = nan


@dataclass(frozen=True)
class Sensitivity:
    """What these seeds could show, and how many would show the smallest effect; see statistics.py."""

    residual_sd: float
    degrees: int
    detectable: float
    """The true difference of one arm that is found with probability POWER, were the residual SD the true one."""
    seeds_needed: tuple[int, int]
    """For the smallest effect, from the 1 - alpha interval of the residual SD; never from the differences observed."""


@dataclass(frozen=True)
class ArmComparison:
    """All of it, for the report; `tested_seeds` is empty and `sensitivity` None where nothing is testable."""

    baseline: str
    smallest_effect: float
    alpha: float
    arms: tuple[ArmSummary, ...]
    contrasts: tuple[Contrast, ...]
    tested_seeds: tuple[int, ...]
    sensitivity: Sensitivity | None
    notes: tuple[str, ...]
    """What was left out, and why."""


@dataclass(frozen=True)
class ExploratoryContrast:
    """Arm minus baseline in one group of the exploratory family; see EXPLORATORY."""

    group: str
    arm: str
    estimate: float
    interval: Interval
    p: float
    q: float
    """Benjamini-Hochberg over all contrasts of all groups: of those with q up to 0.05, about 5 % are by chance."""


def compare_arms(scores: Scores, baseline: str, smallest_effect: float, alpha: float = 0.05) -> ArmComparison:
    """Tests every arm against the baseline on the seeds they share.

    An arm is better or worse by Holm's test, and equivalent where two one-sided tests, Holm-adjusted too, place the
    difference below `smallest_effect` either way; where both hold, what does not matter goes before what is not zero.

    Args:
        scores: of the declared metric.
        baseline: the arm that the others are compared to.
        smallest_effect: the smallest difference that matters, in the unit of the score.
        alpha: the probability of claiming any difference at all where there is none.

    Raises:
        ConfigError: `baseline` names no arm, or `smallest_effect` or `alpha` is out of range.
    """
    if baseline not in scores:
        raise unknown_name("arm", baseline, scores, "baseline")
    if not 0 < smallest_effect < inf:
        raise ConfigError(f"smallest_effect: {smallest_effect} is not above 0, the smallest difference that matters")
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha: {alpha} is not between 0 and 1; 0.05 is usual")
    kept = finite_scores(scores)
    block = complete_block(kept, baseline, alpha)
    tested: dict[str, Contrast] = {}
    sensitivity = None
    if block.tested is not None:
        sensitivity = _sensitivity(block.tested, len(block.arms), len(block.seeds), smallest_effect, alpha)
        tested = _rows(block.tested, block.arms[1:], baseline, smallest_effect, alpha, sensitivity.detectable)
    others = [arm for arm in scores if arm != baseline]
    return ArmComparison(
        baseline=baseline,
        smallest_effect=smallest_effect,
        alpha=alpha,
        arms=tuple(_summary(arm, list(cells.values())) for arm, cells in kept.items()),
        contrasts=tuple(
            tested[arm] if arm in tested else _not_testable(arm, baseline, kept, block.reasons[arm]) for arm in others
        ),
        tested_seeds=block.seeds if tested else (),
        sensitivity=sensitivity,
        notes=block.notes,
    )


def explore(groups: Mapping[str, Scores], baseline: str, alpha: float = 0.05) -> tuple[ExploratoryContrast, ...]:
    """Every testable contrast of every group (a kind of question, a benchmark), with q over all of them.

    Args:
        groups: {group: scores}, each as for `compare_arms`.
        baseline: the arm that the others are compared to; a group without it has no contrasts.
        alpha: one minus the level of the intervals, which are not adjusted.
    """
    found: list[ExploratoryContrast] = []
    for group, scores in groups.items():
        block = complete_block(finite_scores(scores), baseline, alpha) if baseline in scores else None
        if block is None or block.tested is None:
            continue
        for i, arm in enumerate(block.arms[1:]):
            estimate, p = float(block.tested.estimate[i]), float(block.tested.p[i])
            found.append(ExploratoryContrast(group, arm, estimate, _pair(block.tested.interval[i]), p, nan))
    adjusted = stats.false_discovery_control([contrast.p for contrast in found]) if found else []
    return tuple(replace(contrast, q=float(q)) for contrast, q in zip(found, adjusted, strict=True))


def _summary(arm: str, scores: list[float]) -> ArmSummary:
    mean = float(np.mean(scores)) if scores else nan
    return ArmSummary(arm, mean, float(np.std(scores, ddof=1)) if len(scores) > 1 else nan, len(scores))


def _sensitivity(tested: Contrasts, arms: int, seeds: int, smallest_effect: float, alpha: float) -> Sensitivity:
    low, high = seeds_needed(sd_interval(tested.residual_sd, tested.degrees, alpha), smallest_effect, arms, alpha)
    detectable = float(detectable_difference(tested.residual_sd, arms, seeds, alpha))
    return Sensitivity(float(tested.residual_sd), tested.degrees, detectable, (int(low), int(high)))


def _rows(
    tested: Contrasts, arms: tuple[str, ...], baseline: str, effect: float, alpha: float, detectable: float
) -> dict[str, Contrast]:
    """The contrasts of a tested block."""
    p_equivalent = tested.p_equivalent(effect)
    rows = {}
    for i, arm in enumerate(arms):
        estimate, p_holm, interval = float(tested.estimate[i]), float(tested.p_holm[i]), _pair(tested.interval[i])
        verdict = _verdict(estimate, p_holm, float(p_equivalent[i]), alpha)
        numbers = (
            f"by {estimate:+.3g} ({1 - alpha:.0%} interval {interval[0]:+.3g} to {interval[1]:+.3g}, "
            f"Holm-adjusted p = {p_holm:.2g})"
        )
        sentence = f"{arm} is {verdict} than {baseline} {numbers}"
        if verdict == "equivalent":
            zero = ", though not zero" if p_holm <= alpha else ""
            sentence = f"{arm} and {baseline} are equivalent: they differ {numbers}, less than {effect:.3g}{zero}"
        elif verdict == "not separated":
            found = f"a true difference of {detectable:.3g} would be found with probability {POWER:.0%}"
            sentence = f"{arm} and {baseline} are not separated: they differ {numbers}; {found}"
        rows[arm] = Contrast(
            arm=arm,
            estimate=estimate,
            verdict=verdict,
            sentence=sentence,
            standard_error=float(tested.standard_error),
            interval=interval,
            simultaneous=_pair(tested.simultaneous[i]),
            p=float(tested.p[i]),
            p_holm=p_holm,
            p_paired=float(tested.p_paired[i]),
            p_equivalent=float(p_equivalent[i]),
        )
    return rows


def _verdict(estimate: float, p_holm: float, p_equivalent: float, alpha: float) -> Verdict:
    if p_equivalent <= alpha:
        return "equivalent"
    if p_holm > alpha:
        return "not separated"
    return "better" if estimate > 0 else "worse"


def _not_testable(arm: str, baseline: str, scores: Scores, reason: str) -> Contrast:
    shared = [scores[arm][seed] - scores[baseline][seed] for seed in scores[arm] if seed in scores[baseline]]
    estimate = float(np.mean(shared)) if shared else nan
    return Contrast(arm, estimate, "not testable", f"{arm} against {baseline} is not testable: {reason}")


def _pair(interval: np.ndarray) -> Interval:
    return float(interval[0]), float(interval[1])
