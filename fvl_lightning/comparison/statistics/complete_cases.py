"""The part of a comparison that can be tested: arms and seeds without a missing cell, and why the rest was left out.

Only what is missing decides what is left out, never a score: a choice that looked at scores would make claims too many.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

import numpy as np

from fvl_lightning.comparison.statistics.contrasts import Contrasts, contrasts, fewest_seeds

Scores = Mapping[str, Mapping[int, float]]
"""{arm: {seed: score}}, higher is better; a seed that is absent, or whose score is not finite, is a missing cell."""


@dataclass(frozen=True)
class Block:
    """Arms, the baseline first, that all have a score for all of the seeds."""

    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    tested: Contrasts | None
    """Of `arms` without the baseline, in order; None where nothing can be tested."""
    reasons: Mapping[str, str]
    """{arm: why it is not tested}."""
    notes: tuple[str, ...]
    """A sentence for every seed that was left out."""


def finite_scores(scores: Scores) -> dict[str, dict[int, float]]:
    """The cells that are there."""
    return {arm: {seed: score for seed, score in cells.items() if isfinite(score)} for arm, cells in scores.items()}


def complete_block(scores: Scores, baseline: str, alpha: float = 0.05) -> Block:
    """The baseline and as many arms as keep the most cells without a gap, tested if there are enough of them.

    Args:
        scores: finite (see finite_scores), with `baseline` among the arms.
        baseline: the arm that the others are compared to.
        alpha: one minus the level of the intervals.
    """
    arms, seeds = _largest(scores, baseline)
    everywhere = sorted({seed for cells in scores.values() for seed in cells})
    reasons = {arm: _lack(arm, scores[arm], everywhere, baseline) for arm in scores if arm not in arms}
    notes = tuple(
        f"seed {seed} is left out: no score from {', '.join(arm for arm in arms if seed not in scores[arm])}"
        for seed in everywhere
        if seeds and seed not in seeds
    )
    tested, obstacle = None, _too_few(len(arms), len(seeds))
    if obstacle is None:
        tested = contrasts(np.array([[scores[arm][seed] for seed in seeds] for arm in arms]), alpha=alpha)
    if tested is not None and np.isnan(tested.residual_sd):
        tested, obstacle = None, "the arms differ by the same amount for every seed, so chance has no size"
    if obstacle is not None:
        reasons = dict.fromkeys(arms[1:], obstacle) | reasons
    return Block(arms, seeds, tested, reasons, notes)


def _largest(scores: Scores, baseline: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Arms and shared seeds with the most cells; of two with equally many the one with more arms."""
    fullest = sorted((arm for arm in scores if arm != baseline), key=lambda arm: -len(scores[arm]))
    best: tuple[tuple[str, ...], tuple[int, ...]] = (baseline,), ()
    for number in range(1, len(fullest) + 1):
        chosen = (baseline, *(arm for arm in scores if arm in fullest[:number]))
        shared = set.intersection(*(set(scores[arm]) for arm in chosen))
        if shared and len(chosen) * len(shared) >= len(best[0]) * len(best[1]):
            best = chosen, tuple(sorted(shared))
    return best


def _lack(arm: str, cells: Mapping[int, float], seeds: list[int], baseline: str) -> str:
    """Why an arm is left out of the block."""
    missing = [str(seed) for seed in seeds if seed not in cells]
    if not missing:
        return f"{baseline} has no score"
    return f"{arm} has no score for seed{'s' if len(missing) > 1 else ''} {', '.join(missing)}"


def _too_few(arms: int, seeds: int) -> str | None:
    """Why so many arms and seeds are not enough; None where they are."""
    if arms < 2:
        return "no arm shares a seed with the baseline"
    if seeds >= fewest_seeds(arms):
        return None
    return f"{arms} arms need at least {fewest_seeds(arms)} seeds in common and have {seeds}"
