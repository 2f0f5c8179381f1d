"""Contrasts to a baseline over seeds, with intervals, p values and the detectable differences.

A score is arm + seed + residual: every arm is trained with the same seeds, so what a seed does to all arms alike
cancels in a difference. The unit is one whole lineage per (arm, seed); never a question, an image or a step.

Everything here works on arrays, for any number of tables at once: A arms, S seeds, leading axes `...` for separate
tables; verdicts.py turns it into sentences. docs/statistics.md describes the method, its simulated error rates, and
its limits.
"""

from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray
from scipy import special

from fvl_lightning.comparison.statistics.multiple_testing import holm
from fvl_lightning.core.errors import DataError

Array = NDArray[np.float64]

POWER = 0.8
"""The probability with which a difference that is called detectable is found, with its right sign."""

MIN_DEGREES = 4
"""Degrees of freedom; with fewer, the true residual SD may be over three times the observed one (at 95 %)."""

MIN_SEEDS = 3
"""With two seeds, a difference of three residual SDs is missed more often than found, however many arms there are."""

MAX_SEEDS = 10**12
"""Upper bound of a number of seeds."""

ROUNDING = 1e-12
"""Residuals below this fraction of the scores are rounding errors: the scores do not vary."""


@dataclass(frozen=True)
class Contrasts:
    """Arm minus baseline for the A - 1 other arms in their order; NaN where the scores do not vary by chance.

    There are C = A - 1 contrasts, or C = A(A-1)/2 of all pairs of arms.
    """

    estimate: Array
    """`[..., C]`, in the unit of the score."""
    standard_error: Array
    """`[...]`, the same for every contrast of a table, since the residuals are pooled."""
    residual_sd: Array
    """`[...]`, of a single cell, with `degrees` degrees of freedom."""
    degrees: int
    interval: Array
    """`[..., C, 2]`, each contrast on its own at 1 - alpha."""
    simultaneous: Array
    """`[..., C, 2]`, all contrasts of a table together at 1 - alpha (Bonferroni)."""
    p: Array
    """`[..., C]`, two-sided, unadjusted."""
    p_holm: Array
    """`[..., C]`, adjusted over the C contrasts."""
    p_paired: Array
    """`[..., C]`, Holm over paired t tests that pool nothing: less power, and no need for equal variances."""

    def p_equivalent(self, smallest_effect: float) -> Array:
        """Returns the Holm-adjusted p values `[..., C]` of equivalence tests.

        The null hypothesis is an absolute difference of at least `smallest_effect`. p is the larger one of two
        one-sided t tests (TOST, Schuirmann 1987).
        """
        above = (smallest_effect - np.abs(self.estimate)) / self.standard_error[..., None]
        return holm(special.stdtr(self.degrees, -above))


def min_seeds(arms: int) -> int:
    """Returns how many seeds a test of `arms` arms, the baseline among them, needs: 5 for two arms, 3 for more."""
    return max(MIN_SEEDS, ceil(MIN_DEGREES / (arms - 1)) + 1)


def pairs_of(arms: int, baseline: int = 0, all_pairs: bool = False) -> list[tuple[int, int]]:
    """Returns the contrasts (arm, arm that is subtracted) in their order: those to the baseline, then all others."""
    others = [arm for arm in range(arms) if arm != baseline]
    further = [(others[j], others[i]) for i in range(len(others)) for j in range(i + 1, len(others))]
    return [(arm, baseline) for arm in others] + (further if all_pairs else [])


def contrasts(scores: Array, baseline: int = 0, alpha: float = 0.05, all_pairs: bool = False) -> Contrasts:
    """Computes the contrasts of all arms to one of them, or of all pairs of arms in the order of pairs_of.

    The residual is pooled over all arms, with (A-1)(S-1) degrees of freedom; for two arms this is the paired t test.
    Pooling assumes that the differences between any two arms vary equally over seeds (compound symmetry). A baseline
    that varies more than the other arms makes their claims too many: with twice their SD, 11 % of comparisons of 7 arms
    and 5 seeds make a false one instead of 5 %; a calmer baseline makes them too few. `p_paired` does not assume it.

    Args:
        scores: `[..., A, S]`, all finite, at least two arms and two seeds.
        baseline: the index of the arm that the others are compared to.
        alpha: one minus the level of the intervals.
        all_pairs: whether the other arms are compared with each other too; p values are adjusted over all contrasts.

    Raises:
        DataError: fewer than two arms or two seeds.
    """
    scores = np.asarray(scores, dtype=np.float64)
    arms, seeds = scores.shape[-2:]
    if arms < 2 or seeds < 2:
        raise DataError(f"a contrast needs two arms and two seeds or more, not {arms} arms with {seeds} seeds")
    degrees = (arms - 1) * (seeds - 1)
    arm, reference = (list(one) for one in zip(*pairs_of(arms, baseline, all_pairs), strict=True))
    differences = scores[..., arm, :] - scores[..., reference, :]
    estimate = differences.mean(-1)
    blocks = scores - scores.mean(-2, keepdims=True)
    residuals = blocks - blocks.mean(-1, keepdims=True)
    smallest = ROUNDING * np.abs(scores).max((-2, -1))
    residual_sd = _varying(np.sqrt((residuals**2).sum((-2, -1)) / degrees), smallest)
    standard_error = residual_sd * np.sqrt(2 / seeds)
    paired_error = _varying(differences.std(-1, ddof=1), smallest[..., None]) / np.sqrt(seeds)
    p = _two_sided(estimate / standard_error[..., None], degrees)

    def interval(level: float) -> Array:
        half = special.stdtrit(degrees, 1 - level / 2) * standard_error[..., None]
        return np.stack([estimate - half, estimate + half], -1)

    return Contrasts(
        estimate=estimate,
        standard_error=standard_error,
        residual_sd=residual_sd,
        degrees=degrees,
        interval=interval(alpha),
        simultaneous=interval(alpha / len(arm)),
        p=p,
        p_holm=holm(p),
        p_paired=holm(_two_sided(estimate / paired_error, seeds - 1)),
    )


def detectable_difference(
    residual_sd: Array, arms: int, seeds: int, alpha: float = 0.05, all_pairs: bool = False
) -> Array:
    """Returns the true difference `[...]` of one arm that is found with probability `POWER`.

    The test is at alpha / C, where Holm tests the largest contrast; `residual_sd` is taken for the true one.
    """
    first_step = alpha / len(pairs_of(arms, 0, all_pairs))
    return _noncentrality(arms, np.asarray(seeds), first_step) * residual_sd * np.sqrt(2 / seeds)


def seeds_needed(
    residual_sd: Array, difference: float, arms: int, alpha: float = 0.05, all_pairs: bool = False
) -> NDArray[np.int64]:
    """Returns the smallest number of seeds `[...]`, up to MAX_SEEDS, with which a true `difference` is detectable."""
    alpha = alpha / len(pairs_of(arms, 0, all_pairs))
    ratio = np.minimum(np.asarray(residual_sd, dtype=np.float64) / difference, MAX_SEEDS)
    low = np.full(ratio.shape, min_seeds(arms))
    # More seeds make the critical value smaller, so the number for the fewest seeds is an upper bound.
    high = np.clip(np.ceil(_square_sum(arms, low, ratio, alpha)), low, MAX_SEEDS).astype(np.int64)
    while np.any(low < high):
        middle = (low + high) // 2
        enough = middle >= _square_sum(arms, middle, ratio, alpha)
        low, high = np.where(enough, low, middle + 1), np.where(enough, middle, high)
    return low


def sd_interval(residual_sd: Array, degrees: int, alpha: float = 0.05) -> Array:
    """Returns the interval of the residual SD `[..., 2]` at 1 - alpha (chi-square)."""
    quantiles = special.chdtri(degrees, np.array([alpha / 2, 1 - alpha / 2]))
    return np.asarray(residual_sd)[..., None] * np.sqrt(degrees / quantiles)


def _varying(sd: Array, smallest: Array) -> Array:
    """Returns NaN in place of an SD that is only rounding error: an infinite t would look like certainty."""
    return np.where(sd > smallest, sd, np.nan)


def _two_sided(t: Array, degrees: int) -> Array:
    return 2 * special.stdtr(degrees, -np.abs(t))


def _noncentrality(arms: int, seeds: NDArray[np.int64], alpha: float) -> Array:
    """Returns the true difference, in standard errors, that a test at `alpha` finds with probability `POWER`."""
    degrees = (arms - 1) * (seeds - 1)
    critical = special.stdtrit(degrees, 1 - alpha / 2)
    return special.nctdtrinc(degrees, 1 - POWER, critical)


def _square_sum(arms: int, seeds: NDArray[np.int64], ratio: Array, alpha: float) -> Array:
    """Returns the number of seeds for a small enough standard error, with the critical value for `seeds`."""
    return 2 * (_noncentrality(arms, seeds, alpha) * ratio) ** 2
