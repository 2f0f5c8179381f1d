"""Families of tests: the scores of several tasks, each with its own contrasts, adjusted over all of them at once.

The primary score of a comparison is no part of the family: verdicts.py tests it by itself.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import isfinite, nan
from typing import Literal

import numpy as np

from fvl_lightning.comparison.result_files.statistics import ArmSummary, TaskContrast, TaskFamily
from fvl_lightning.comparison.statistics.complete_cases import (
    ArmScores,
    CompleteCases,
    complete_cases,
    finite_scores,
)
from fvl_lightning.comparison.statistics.contrasts import pairs_of
from fvl_lightning.comparison.statistics.multiple_testing import benjamini_hochberg, holm
from fvl_lightning.comparison.statistics.verdicts import arm_summary

Correction = Literal["holm", "benjamini_hochberg"]


def compare_family(
    scores: Mapping[str, ArmScores],
    baseline: str,
    correction: Correction = "holm",
    all_pairs: bool = False,
    higher_is_better: Mapping[str, bool] | None = None,
    alpha: float = 0.05,
) -> TaskFamily:
    """Tests every score of a family, and adjusts over all contrasts of all scores.

    Holm's method keeps the probability of any false claim in the family below `alpha`, Benjamini-Hochberg's the
    expected part of the claims that are false.

    Args:
        scores: {score: scores of the arms}, each with `baseline` among the arms.
        baseline: the arm that the others are compared to.
        correction: the method of adjustment.
        all_pairs: whether the other arms are compared with each other too.
        higher_is_better: {score: its direction}; by default a higher one is better.
        alpha: one minus the level of the intervals, and the level of the tests.
    """
    contrasts: list[TaskContrast] = []
    notes: list[str] = []
    for score, by_arm in scores.items():
        cases = complete_cases(finite_scores(by_arm), baseline, alpha, all_pairs)
        contrasts += _contrasts_of(score, by_arm, cases, baseline, all_pairs)
        notes += [f"{score}: {note}" for note in cases.notes]
    tested = [contrast.p for contrast in contrasts if isfinite(contrast.p)]
    adjusted = iter(_adjusted(tested, correction))
    directions = higher_is_better or {}
    return TaskFamily(
        correction=correction,
        scores=tuple(scores),
        contrasts=tuple(
            _judged(contrast, next(adjusted), directions.get(contrast.score, True), alpha)
            if isfinite(contrast.p)
            else contrast
            for contrast in contrasts
        ),
        tests=len(tested),
        notes=tuple(notes),
    )


def family_arms(scores: ArmScores) -> tuple[ArmSummary, ...]:
    """Returns mean and SD of the arms over their seeds."""
    return tuple(arm_summary(arm, list(cells.values())) for arm, cells in finite_scores(scores).items())


def _contrasts_of(
    score: str, scores: ArmScores, cases: CompleteCases, baseline: str, all_pairs: bool
) -> list[TaskContrast]:
    """Returns the contrasts of one score, not adjusted; those that cannot be tested have an estimate alone."""
    others = [arm for arm in scores if arm != baseline]
    order = [baseline, *others]
    contrasts = []
    tested: dict[tuple[str, str], int] = {}
    if cases.tested is not None:
        for number, (one, other) in enumerate(pairs_of(len(cases.arms), 0, all_pairs)):
            tested[cases.arms[one], cases.arms[other]] = number
    for one, other in pairs_of(len(order), 0, all_pairs):
        arm, against = order[one], order[other]
        if (place := tested.get((arm, against))) is None or cases.tested is None:
            reason = cases.reasons.get(arm) or cases.reasons.get(against) or ""
            contrasts.append(TaskContrast(score, arm, against, _mean_difference(scores, arm, against), reason=reason))
            continue
        low, high = cases.tested.interval[place]
        contrasts.append(
            TaskContrast(
                score,
                arm,
                against,
                estimate=float(cases.tested.estimate[place]),
                standard_error=float(cases.tested.standard_error),
                interval=(float(low), float(high)),
                p=float(cases.tested.p[place]),
            )
        )
    return contrasts


def _mean_difference(scores: ArmScores, arm: str, against: str) -> float:
    shared = [scores[arm][seed] - scores[against][seed] for seed in scores[arm] if seed in scores[against]]
    return float(np.mean(shared)) if shared else nan


def _adjusted(p: list[float], correction: Correction) -> list[float]:
    if not p:
        return []
    values = (holm if correction == "holm" else benjamini_hochberg)(np.array(p))
    return [float(value) for value in values]


def _judged(contrast: TaskContrast, p_adjusted: float, higher_is_better: bool, alpha: float) -> TaskContrast:
    if p_adjusted > alpha:
        return replace(contrast, p_adjusted=p_adjusted, verdict="not separated")
    gain = contrast.estimate if higher_is_better else -contrast.estimate
    return replace(contrast, p_adjusted=p_adjusted, verdict="better" if gain > 0 else "worse")
