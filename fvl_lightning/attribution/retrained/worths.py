"""Worths of the sources of a comparison over subsets: at each size, on all questions and on each kind."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fvl_lightning.attribution.retrained.arms import Size, SubsetArms
from fvl_lightning.attribution.retrained.shapley import (
    Array,
    Subset,
    leave_one_out,
    one_alone,
    shapley_interactions,
    shapley_values,
    worth_table,
)
from fvl_lightning.comparison.result_files.cell import Measurements
from fvl_lightning.comparison.result_files.comparison import Comparison
from fvl_lightning.comparison.scoring.names import is_average, is_task_score, split_task_score
from fvl_lightning.comparison.statistics.multiple_testing import benjamini_hochberg, holm
from fvl_lightning.comparison.statistics.seed_means import SeedMeans, seed_means

ScoreOf = Callable[[Measurements], float]


@dataclass(frozen=True)
class Worths:
    """Worths on one score: of each source and pair of sources, for every seed and over seeds."""

    seeds: tuple[int, ...]
    table: Array
    """`[S, 2^n]`, the scores of the subsets; NaN where there is none."""
    shapley: Array
    """`[S, n]`; NaN where a seed lacks a subset."""
    shapley_means: SeedMeans
    interactions: SeedMeans
    """`[n, n]`."""
    left_out: SeedMeans
    alone: SeedMeans
    spread: SeedMeans
    """`[]`, all sources less none: what the Shapley values add up to."""
    scores: SeedMeans
    """`[2^n]`"""

    @property
    def p(self) -> Array:
        """p values of the Shapley values, adjusted over the sources by Holm's method; NaN counts as a test."""
        return holm(self.shapley_means.p)

    @property
    def complete(self) -> int:
        """The number of seeds with all subsets."""
        return int(np.isfinite(self.table).all(-1).sum())


@dataclass(frozen=True)
class SizeWorths:
    """Worths of the arms of one size."""

    size: Size
    whole: Worths
    kinds: Mapping[str, Worths]
    """{kind of question: worths}; empty where there is a single kind."""

    def clear_kinds(self, alpha: float = 0.05) -> dict[str, list[bool]]:
        """Returns {kind: whether the Shapley value of each source differs from zero}, adjusted over all of them.

        The share of false claims is bounded by `alpha` (Benjamini and Hochberg); they are hints.
        """
        p = np.array([worths.shapley_means.p for worths in self.kinds.values()])
        clear, known = np.zeros(p.shape, bool), np.isfinite(p)
        if known.any():
            clear[known] = benjamini_hochberg(p[known]) <= alpha
        return dict(zip(self.kinds, clear.tolist(), strict=True))


def all_worths(results: Comparison, arms: SubsetArms) -> list[SizeWorths]:
    """Returns the worths at every size that there are arms of."""
    kinds = _kinds(results)
    several = kinds if len(kinds) > 1 else {}
    return [
        SizeWorths(
            size,
            worths_on(results, by_subset, arms.sources, lambda result: result.score(results.metric)),
            {kind: worths_on(results, by_subset, arms.sources, score_of) for kind, score_of in several.items()},
        )
        for size, by_subset in arms.arms.items()
    ]


def worths_on(
    results: Comparison, arms: Mapping[Subset, str], sources: Sequence[str], score_of: ScoreOf
) -> Worths:
    """Returns the worths on one score; where a lower score is better, its sign is changed.

    Args:
        results: the comparison.
        arms: {subset: arm}.
        sources: all sources, in order.
        score_of: returns the score of a cell.
    """
    sign = 1.0 if results.component.higher_is_better else -1.0
    found = {(cell.arm, cell.seed): sign * float(score_of(cell.result)) for cell in results.cells}
    seeds = tuple(seed for seed in results.seeds if any((arm, seed) in found for arm in arms.values()))
    scores = {subset: [found.get((arm, seed), np.nan) for seed in seeds] for subset, arm in arms.items()}
    return worths_of(worth_table(scores, sources), seeds)


def worths_of(table: Array, seeds: Sequence[int]) -> Worths:
    """Returns the worths of a table `[S, 2^n]`."""
    shapley = shapley_values(table)
    return Worths(
        seeds=tuple(seeds),
        table=table,
        shapley=shapley,
        shapley_means=seed_means(shapley),
        interactions=seed_means(shapley_interactions(table)),
        left_out=seed_means(leave_one_out(table)),
        alone=seed_means(one_alone(table)),
        spread=seed_means(table[:, -1] - table[:, 0]),
        scores=seed_means(table),
    )


def _kinds(results: Comparison) -> dict[str, ScoreOf]:
    """Returns {kind of question: its score in a cell}, of the metric that arms are compared by."""
    first = results.cells[0].result
    if not is_task_score(results.metric):
        metric = results.split_metric
        return {kind: _kind_of(metric, kind) for kind in first.scores[metric].by_kind} if first.scores else {}
    if is_average(results.metric):
        return {}
    task, _ = split_task_score(results.metric)
    return {kind: _task_kind(task, kind) for kind in first.tasks[task].scores.by_kind}


def _kind_of(metric: str, kind: str) -> ScoreOf:
    return lambda result: result.scores[metric].by_kind[kind]


def _task_kind(task: str, kind: str) -> ScoreOf:
    return lambda result: result.tasks[task].scores.by_kind[kind]
