"""Complete cases of a comparison: the arms and seeds without a missing cell, which can be tested.

What is left out depends on missing cells alone, never on a score: a choice by scores would lead to false claims.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

import numpy as np

from fvl_lightning.comparison.statistics.contrasts import Contrasts, contrasts, min_seeds

ArmScores = Mapping[str, Mapping[int, float]]
"""{arm: {seed: score}}; a seed that is absent, or whose score is not finite, is a missing cell."""


@dataclass(frozen=True)
class CompleteCases:
    """Arms and seeds without a missing cell."""

    arms: tuple[str, ...]
    """The baseline first."""
    seeds: tuple[int, ...]
    tested: Contrasts | None
    """The contrasts of `arms`, in the order of pairs_of; None where nothing can be tested."""
    reasons: Mapping[str, str]
    """{arm: why it is not tested}."""
    notes: tuple[str, ...]
    """A sentence for every seed that was left out."""


def finite_scores(scores: ArmScores) -> dict[str, dict[int, float]]:
    """Returns the scores without those that are not finite."""
    return {arm: {seed: score for seed, score in cells.items() if isfinite(score)} for arm, cells in scores.items()}


def complete_cases(
    scores: ArmScores, baseline: str, alpha: float = 0.05, all_pairs: bool = False
) -> CompleteCases:
    """Chooses the arms that keep the most cells without a gap, and tests them if there are enough.

    Args:
        scores: finite (see finite_scores), with `baseline` among the arms.
        baseline: the arm that the others are compared to.
        alpha: one minus the level of the intervals.
        all_pairs: whether the other arms are compared with each other too.
    """
    arms, seeds = _largest(scores, baseline)
    everywhere = sorted({seed for cells in scores.values() for seed in cells})
    reasons = {arm: _lack(arm, scores[arm], everywhere, baseline) for arm in scores if arm not in arms}
    notes = tuple(
        f"seed {seed} is left out: no score from {', '.join(arm for arm in arms if seed not in scores[arm])}"
        for seed in everywhere
        if seeds and seed not in seeds
    )
    tested, obstacle = None, too_few(len(arms), len(seeds))
    if obstacle is None:
        table = np.array([[scores[arm][seed] for seed in seeds] for arm in arms])
        tested = contrasts(table, alpha=alpha, all_pairs=all_pairs)
    if tested is not None and np.isnan(tested.residual_sd):
        tested, obstacle = None, "the arms differ by the same amount for every seed, so chance has no size"
    if obstacle is not None:
        reasons = dict.fromkeys(arms[1:], obstacle) | reasons
    return CompleteCases(arms, seeds, tested, reasons, notes)


def _largest(scores: ArmScores, baseline: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Returns arms and shared seeds with the most cells; of two sets with equally many, the one with more arms."""
    fullest = sorted((arm for arm in scores if arm != baseline), key=lambda arm: -len(scores[arm]))
    best: tuple[tuple[str, ...], tuple[int, ...]] = (baseline,), ()
    for number in range(1, len(fullest) + 1):
        chosen = (baseline, *(arm for arm in scores if arm in fullest[:number]))
        shared = set.intersection(*(set(scores[arm]) for arm in chosen))
        if shared and len(chosen) * len(shared) >= len(best[0]) * len(best[1]):
            best = chosen, tuple(sorted(shared))
    return best


def _lack(arm: str, cells: Mapping[int, float], seeds: list[int], baseline: str) -> str:
    """Returns why an arm is left out."""
    missing = [str(seed) for seed in seeds if seed not in cells]
    if not missing:
        return f"{baseline} has no score"
    return f"{arm} has no score for seed{'s' if len(missing) > 1 else ''} {', '.join(missing)}"


def too_few(arms: int, seeds: int) -> str | None:
    """Returns why so many arms and seeds are not enough; None where they are."""
    if arms < 2:
        return "no arm shares a seed with the baseline"
    if seeds >= min_seeds(arms):
        return None
    return f"{arms} arms need at least {min_seeds(arms)} seeds in common and have {seeds}"
