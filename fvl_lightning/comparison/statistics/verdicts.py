"""Verdicts of a comparison over seeds: one per arm against the declared baseline, each with a sentence.

contrasts.py and docs/statistics.md describe the method. Scores are those of the one declared metric; kinds of question
and further splits go through `explore`, whose results are hints and decide nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf, nan

import numpy as np
from scipy import stats

from fvl_lightning.comparison.result_files.statistics import (
    ArmComparison,
    ArmSummary,
    Contrast,
    ExploratoryContrast,
    Interval,
    Sensitivity,
    Verdict,
)
from fvl_lightning.comparison.statistics.complete_cases import (
    ArmScores,
    CompleteCases,
    complete_cases,
    finite_scores,
)
from fvl_lightning.comparison.statistics.contrasts import (
    POWER,
    Contrasts,
    detectable_difference,
    pairs_of,
    sd_interval,
    seeds_needed,
)
from fvl_lightning.core.errors import ConfigError, unknown_name

EXPLORATORY = "exploratory, adjusted by Benjamini-Hochberg: a hint, to be confirmed with new seeds"
"""Label of the results of `explore` wherever they are shown."""


def compare_arms(
    scores: ArmScores,
    baseline: str,
    smallest_effect: float,
    alpha: float = 0.05,
    higher_is_better: bool = True,
    all_pairs: bool = False,
) -> ArmComparison:
    """Tests every arm against the baseline on the seeds they share.

    An arm is better or worse by Holm's test. It is equivalent where two one-sided tests, also Holm-adjusted, place the
    difference below `smallest_effect` in both directions. Where both hold, it is equivalent: a difference that does
    not matter, though it is not zero.

    Args:
        scores: the scores of the declared metric.
        baseline: the arm that the others are compared to.
        smallest_effect: the smallest difference that matters, in the unit of the score.
        alpha: the probability of claiming any difference at all where there is none.
        higher_is_better: the direction of the metric.
        all_pairs: whether the other arms are compared with each other too; Holm then adjusts over all pairs.

    Raises:
        ConfigError: `baseline` is not an arm, or `smallest_effect` or `alpha` is out of range.
    """
    if baseline not in scores:
        raise unknown_name("arm", baseline, scores, "baseline")
    if not 0 < smallest_effect < inf:
        raise ConfigError(f"smallest_effect: expected a number above 0, found {smallest_effect}")
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha: {alpha} is not between 0 and 1; 0.05 is usual")
    kept = finite_scores(scores)
    cases = complete_cases(kept, baseline, alpha, all_pairs)
    rows: list[Contrast] = []
    sensitivity = None
    if cases.tested is not None:
        sensitivity = _sensitivity(cases, cases.tested, smallest_effect, alpha, all_pairs)
        scale = _Scale(smallest_effect, alpha, sensitivity.detectable, 1 if higher_is_better else -1)
        rows = _rows(cases.tested, cases.arms, scale, all_pairs)
    tested = {contrast.arm: contrast for contrast in rows if not contrast.against}
    others = [arm for arm in scores if arm != baseline]
    return ArmComparison(
        baseline=baseline,
        smallest_effect=smallest_effect,
        alpha=alpha,
        arms=tuple(arm_summary(arm, list(cells.values())) for arm, cells in kept.items()),
        contrasts=tuple(
            tested[arm] if arm in tested else _not_testable(arm, baseline, kept, cases.reasons[arm]) for arm in others
        ),
        tested_seeds=cases.seeds if tested else (),
        sensitivity=sensitivity,
        notes=cases.notes,
        pairs=tuple(contrast for contrast in rows if contrast.against),
    )


def explore(groups: Mapping[str, ArmScores], baseline: str, alpha: float = 0.05) -> tuple[ExploratoryContrast, ...]:
    """Returns every testable contrast of every group (a kind of question, a split), with q over all of them.

    Args:
        groups: {group: scores}, each as for `compare_arms`.
        baseline: the arm that the others are compared to; a group without it has no contrasts.
        alpha: one minus the level of the intervals, which are not adjusted.
    """
    hints: list[ExploratoryContrast] = []
    for group, scores in groups.items():
        cases = complete_cases(finite_scores(scores), baseline, alpha) if baseline in scores else None
        if cases is None or cases.tested is None:
            continue
        for i, arm in enumerate(cases.arms[1:]):
            estimate, p = float(cases.tested.estimate[i]), float(cases.tested.p[i])
            hints.append(ExploratoryContrast(group, arm, estimate, _pair(cases.tested.interval[i]), p, nan))
    adjusted = stats.false_discovery_control([contrast.p for contrast in hints]) if hints else []
    return tuple(replace(contrast, q=float(q)) for contrast, q in zip(hints, adjusted, strict=True))


def arm_summary(arm: str, scores: list[float]) -> ArmSummary:
    """Returns mean and SD of an arm's finite scores over its seeds."""
    mean = float(np.mean(scores)) if scores else nan
    return ArmSummary(arm, mean, float(np.std(scores, ddof=1)) if len(scores) > 1 else nan, len(scores))


@dataclass(frozen=True)
class _Scale:
    """Sizes that verdicts are judged by."""

    effect: float
    """The smallest difference that matters."""
    alpha: float
    """One minus the level of the intervals."""
    detectable: float
    """The true difference that is found with probability POWER."""
    direction: int
    """1 where a higher score is better, else -1."""


def _sensitivity(
    cases: CompleteCases, tested: Contrasts, smallest_effect: float, alpha: float, all_pairs: bool
) -> Sensitivity:
    arms, seeds = len(cases.arms), len(cases.seeds)
    sds = sd_interval(tested.residual_sd, tested.degrees, alpha)
    low, high = seeds_needed(sds, smallest_effect, arms, alpha, all_pairs)
    detectable = float(detectable_difference(tested.residual_sd, arms, seeds, alpha, all_pairs))
    return Sensitivity(float(tested.residual_sd), tested.degrees, detectable, (int(low), int(high)))


def _rows(tested: Contrasts, arms: tuple[str, ...], scale: _Scale, all_pairs: bool) -> list[Contrast]:
    """Returns the contrasts of the tested arms.

    Args:
        tested: the contrasts of `arms`, in the order of pairs_of.
        arms: the baseline first.
        scale: see _Scale.
        all_pairs: whether `tested` has all pairs.
    """
    effect, alpha = scale.effect, scale.alpha
    p_equivalent = tested.p_equivalent(effect)
    rows = []
    for i, (one, other) in enumerate(pairs_of(len(arms), 0, all_pairs)):
        arm, baseline = arms[one], arms[other]
        estimate, p_holm, interval = float(tested.estimate[i]), float(tested.p_holm[i]), _pair(tested.interval[i])
        verdict = _verdict(scale.direction * estimate, p_holm, float(p_equivalent[i]), alpha)
        numbers = (
            f"by {estimate:+.3g} ({1 - alpha:.0%} interval {interval[0]:+.3g} to {interval[1]:+.3g}, "
            f"Holm-adjusted p = {p_holm:.2g})"
        )
        sentence = f"{arm} is {verdict} than {baseline} {numbers}"
        if verdict == "equivalent":
            zero = ", though not zero" if p_holm <= alpha else ""
            sentence = f"{arm} and {baseline} are equivalent: they differ {numbers}, less than {effect:.3g}{zero}"
        elif verdict == "not separated":
            power = f"a true difference of {scale.detectable:.3g} would be found with probability {POWER:.0%}"
            sentence = f"{arm} and {baseline} are not separated: they differ {numbers}; {power}"
        contrast = Contrast(
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
            against=baseline if other else "",
        )
        rows.append(contrast)
    return rows


def _verdict(gain: float, p_holm: float, p_equivalent: float, alpha: float) -> Verdict:
    if p_equivalent <= alpha:
        return "equivalent"
    if p_holm > alpha:
        return "not separated"
    return "better" if gain > 0 else "worse"


def _not_testable(arm: str, baseline: str, scores: ArmScores, reason: str) -> Contrast:
    shared = [scores[arm][seed] - scores[baseline][seed] for seed in scores[arm] if seed in scores[baseline]]
    estimate = float(np.mean(shared)) if shared else nan
    return Contrast(arm, estimate, "not testable", f"{arm} against {baseline} is not testable: {reason}")


def _pair(interval: np.ndarray) -> Interval:
    return float(interval[0]), float(interval[1])
