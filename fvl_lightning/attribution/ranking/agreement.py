"""Agreement of two measures of the same sources: rank correlation over seeds, and pairs that they order otherwise."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fvl_lightning.comparison.statistics.seed_means import SeedMeans, seed_means

Array = NDArray[np.float64]


@dataclass(frozen=True)
class SourceMeasure:
    """Numbers of the sources, such as their gates or Shapley values: more means worth more."""

    name: str
    by_seed: Mapping[int, Mapping[str, float]]
    """{seed: {source: number}}"""
    share: bool = False
    """Whether the numbers of a model add up to one."""

    def table(self, seeds: Sequence[int], sources: Sequence[str]) -> Array:
        """Returns `[S, n]`; NaN where a seed or a source has no number."""
        rows = [self.by_seed.get(seed, {}) for seed in seeds]
        return np.array([[row.get(source, np.nan) for source in sources] for row in rows], dtype=np.float64)


@dataclass(frozen=True)
class Agreement:
    """Agreement of a measure with the reference."""

    spearman: SeedMeans
    """Correlation of the ranks of the sources, seed by seed; NaN where a measure gives all sources the same."""
    kendall: SeedMeans
    """tau-b, which takes ties into account."""
    of_means: float
    """Spearman's correlation of the means over seeds."""
    contradicted: tuple[tuple[str, str], ...]
    """(a, b): the measure puts a above b, and the reference b above a; both differences have intervals without zero."""
    overrated: tuple[str, ...]
    """Sources with at least an equal share by the measure, which the reference does not show to be worth anything."""


def agreement(measure: SourceMeasure, reference: SourceMeasure, sources: Sequence[str]) -> Agreement | None:
    """Compares a measure with the reference on the seeds that both have; None where there are none."""
    seeds = [seed for seed in reference.by_seed if seed in measure.by_seed]
    if not seeds or len(sources) < 2:
        return None
    found, truth = measure.table(seeds, sources), reference.table(seeds, sources)
    known = np.isfinite(found).all(-1) & np.isfinite(truth).all(-1)
    found, truth = found[known], truth[known]
    if not len(found):
        return None
    worthless = seed_means(truth).interval[:, 0] <= 0
    generous = found.mean(0) >= 1 / len(sources)
    return Agreement(
        spearman=seed_means([correlation(stats.spearmanr, *rows) for rows in zip(found, truth, strict=True)]),
        kendall=seed_means([correlation(stats.kendalltau, *rows) for rows in zip(found, truth, strict=True)]),
        of_means=correlation(stats.spearmanr, found.mean(0), truth.mean(0)),
        contradicted=tuple(
            (sources[a], sources[b])
            for a in range(len(sources))
            for b in range(len(sources))
            if is_above(found, a, b) and is_above(truth, b, a)
        ),
        overrated=tuple(np.array(sources)[worthless & generous].tolist()) if measure.share else (),
    )


def correlation(method: Callable[..., tuple[float, float]], one: Array, other: Array) -> float:
    """Returns a rank correlation, or NaN where one side is constant."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(method(one, other)[0])


def is_above(table: Array, one: int, other: int) -> bool:
    """Returns whether the interval over seeds of the difference of two sources is above zero; `table` is `[S, n]`."""
    return bool(seed_means(table[:, one] - table[:, other]).interval[0] > 0)


def ranks(means: Array) -> list[float]:
    """Returns the rank of each source, 1 for the largest number; equal numbers share the mean of their ranks."""
    return stats.rankdata(-means).tolist()
