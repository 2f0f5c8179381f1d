"""Means over seeds of numbers that are made of the scores of one seed, with t intervals.

A number such as the difference of two arms, or a Shapley value, is computed for each seed by itself, so that what a
seed does to all arms alike cancels before the mean is taken. Nothing is pooled: other than in contrasts.py, arms may
vary unequally.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from fvl_lightning.comparison.statistics.contrasts import ROUNDING, Array


@dataclass(frozen=True)
class SeedMeans:
    """Means over seeds of any number of quantities, `[...]`."""

    mean: Array
    """NaN where no seed has the number."""
    interval: Array
    """`[..., 2]`, each by itself at 1 - alpha; NaN with fewer than two seeds, or where seeds do not vary."""
    p: Array
    """`[...]`, two-sided, of a true mean of zero, unadjusted; NaN as the intervals."""
    seeds: NDArray[np.int64]
    """`[...]`, the number of seeds that have the number."""


def seed_means(values: ArrayLike, alpha: float = 0.05) -> SeedMeans:
    """Returns means over seeds with t intervals of S - 1 degrees of freedom.

    Args:
        values: `[S, ...]`, NaN where a seed does not have the number.
        alpha: one minus the level of the intervals.
    """
    table = np.asarray(values, dtype=np.float64)
    known = np.isfinite(table)
    seeds = known.sum(0)
    mean = np.where(known, table, 0.0).sum(0) / np.where(seeds > 0, seeds, np.nan)
    degrees = np.where(seeds > 1, seeds - 1, np.nan)
    sd = np.sqrt((np.where(known, table - mean, 0.0) ** 2).sum(0) / degrees)
    sd = np.where(sd > ROUNDING * np.abs(np.where(known, table, 0.0)).max(0, initial=0.0), sd, np.nan)
    error = sd / np.sqrt(seeds)
    half = special.stdtrit(degrees, 1 - alpha / 2) * error
    return SeedMeans(
        mean=mean,
        interval=np.stack([mean - half, mean + half], -1),
        p=2 * special.stdtr(degrees, -np.abs(mean / error)),
        seeds=seeds,
    )
