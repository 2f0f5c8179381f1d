"""Bootstrap over clusters of questions: sampling variation of trained models' numbers over new questions.

Questions of one cluster, such as those about one image, tend to be right or wrong together, so they are drawn together.
The models are fixed: these intervals do not cover training again with other seeds.
"""

import copy
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import nan, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Array = NDArray[np.float64]

LABEL = "these trained models, new questions"
"""Label of these intervals wherever they are shown."""
ALPHA = 0.05
"""One minus the level of an interval."""
RESAMPLES, FEWEST_RESAMPLES = 10_000, 2_000
"""Numbers of draws: the usual one, and the smallest one, for many clusters."""
FEWEST_FOR_PERCENTILES = 200
"""With fewer draws, an interval is computed from their standard deviation."""
MAX_DRAWN = 100_000_000
"""Clusters drawn in all, as far as FEWEST_RESAMPLES allows."""
MAX_WEIGHTS = 4_000_000
"""Weights of clusters held in memory at once, 8 bytes each."""


@dataclass(frozen=True)
class Estimate:
    """A number on the questions at hand, and its interval over new questions."""

    value: float
    interval: tuple[float, float] = (nan, nan)
    """NaN if it is not known, such as for a single cluster."""

    @property
    def excludes_zero(self) -> bool:
        """Returns whether the interval does not include zero; False if it is not known."""
        return self.interval[0] > 0 or self.interval[1] < 0


class Resamples:
    """Draws of clusters with replacement, shared by all numbers that are computed on them."""

    def __init__(self, clusters: Sequence[Hashable], resamples: int | None = None, seed: int = 0) -> None:
        """Takes the cluster of each of Q questions, at least one.

        Args:
            clusters: the cluster of each question.
            resamples: number of draws R; None for as many as the number of clusters allows.
            seed: the seed of the draws.
        """
        numbers: dict[Hashable, int] = {}
        self.cluster = np.array([numbers.setdefault(name, len(numbers)) for name in clusters], dtype=np.intp)
        self.clusters = len(numbers)
        affordable = MAX_DRAWN // max(1, self.clusters)
        self.number = resamples or max(FEWEST_RESAMPLES, min(RESAMPLES, affordable))
        self._seed = seed

    def limited(self, number: int) -> "Resamples":
        """Returns the first draws of these, at most `number`."""
        fewer = copy.copy(self)
        fewer.number = min(self.number, number)
        return fewer

    def weights(self) -> Iterator[Array]:
        """Yields how often each cluster is drawn, `[r, I]`, for some of the draws at a time."""
        generator = np.random.default_rng(self._seed)
        size = max(1, MAX_WEIGHTS // self.clusters)
        for start in range(0, self.number, size):
            rows = min(size, self.number - start)
            drawn = generator.integers(0, self.clusters, (rows, self.clusters))
            drawn += np.arange(rows)[:, None] * self.clusters
            counts = np.bincount(drawn.ravel(), minlength=rows * self.clusters)
            yield counts.reshape(rows, self.clusters).astype(np.float64)

    def totals(self, columns: ArrayLike, groups: NDArray[np.intp] | None = None) -> Array:
        """Returns sums `[I, G, ...]` of `columns` `[Q, ...]` over the questions of each cluster and group.

        Args:
            columns: numbers of each question.
            groups: the number of each question's group `[Q]`; None for one group.
        """
        columns = np.asarray(columns, dtype=np.float64)
        groups = np.zeros(len(columns), dtype=np.intp) if groups is None else groups
        totals = np.zeros((self.clusters, int(groups.max(initial=0)) + 1, *columns.shape[1:]))
        np.add.at(totals, (self.cluster, groups), columns)
        return totals

    def sums(self, totals: Array) -> Array:
        """Returns the sums `[1 + R, ...]` of `totals` `[I, ...]`: over the clusters as they are, then of each draw."""
        flat = totals.reshape(self.clusters, -1)
        drawn = np.concatenate([flat.sum(0, keepdims=True), *(chunk @ flat for chunk in self.weights())])
        return drawn.reshape(-1, *totals.shape[1:])


def ratio(sums: Array, counts: Array) -> Array:
    """Returns sums / counts, NaN where nothing is counted."""
    return np.divide(sums, counts, out=np.full(np.broadcast(sums, counts).shape, np.nan), where=counts > 0)


def estimate(draws: Array, clusters: int, alpha: float = ALPHA, reach: float = 0.0) -> Estimate:
    """Returns the estimate of a number whose values `[1 + R]` are the observed one and those of the draws.

    The percentiles are those at which an interval of a mean would be as wide as that of a t test: with few clusters,
    plain percentiles are too narrow (Hesterberg 2015, "What Teachers Should Know About the Bootstrap").

    Args:
        draws: the values; NaN where a draw has none.
        clusters: the number of clusters that the number is computed from.
        alpha: one minus the level.
        reach: the largest change of the number if every cluster changed. If all draws are equal, the half-width of the
            interval is `reach` times the largest plausible share of unseen clusters; 0 for no width.
    """
    observed, drawn = float(draws[0]), draws[1:][np.isfinite(draws[1:])]
    if clusters < 2 or not len(drawn):
        return Estimate(observed)
    if drawn.min() == drawn.max():
        half = unseen(clusters, alpha, reach)
        return Estimate(observed, (observed - half, observed + half))
    if len(drawn) < FEWEST_FOR_PERCENTILES:
        half = float(drawn.std(ddof=1)) * widened(clusters, alpha)
        return Estimate(observed, (observed - half, observed + half))
    tail = float(special.ndtr(-widened(clusters, alpha)))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Estimate(observed, (float(low), float(high)))


def within(found: Estimate, bounds: tuple[float, float]) -> Estimate:
    """Returns an estimate whose interval ends at the lowest and highest value of its number."""
    (lowest, highest), (low, high) = found.interval, bounds
    return replace(found, interval=(max(lowest, low), min(highest, high))) if np.isfinite(lowest) else found


def unseen(clusters: int, alpha: float, reach: float) -> float:
    """Returns the half-width for clusters that all agree: `reach` times the largest share that they may have missed."""
    return reach * (1 - (alpha / 2) ** (1 / clusters))


def widened(clusters: int, alpha: float = ALPHA) -> float:
    """Returns the half-width of a t interval in units of the bootstrap's standard error.

    The bootstrap divides the variance by n clusters, and the t interval by n - 1, so the t quantile is multiplied by
    sqrt(n / (n - 1)).
    """
    return float(special.stdtrit(clusters - 1, 1 - alpha / 2)) * sqrt(clusters / (clusters - 1))
