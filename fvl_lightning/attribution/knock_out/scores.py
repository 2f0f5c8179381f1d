"""Scores of a model with some sources replaced: losses, Conditional Utilization Rates, and the Information Gap.

The last two are those of arXiv 2507.03262. With acc(S) the score of the trained model that gets the sources S, and E
all of its sources,

    u(e) = (acc(E) - acc(E without e)) / acc(E)        the Conditional Utilization Rate (CUR) of the source e
    gap  = max over e of u(e) - min over e of u(e)     the Information Gap (IG)

A CUR is at most 1; near 0 the other sources replace e, and below 0 the answers are better without it. The paper
replaces the output of an encoder by zeros; here `replacement` says what stands in place of a source. An IG is never
below 0, so that its interval does not show whether it differs from 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np

from fvl_lightning.attribution.knock_out.subsets import Subset, without
from fvl_lightning.evaluation.metrics.base import AnswerMetric
from fvl_lightning.evaluation.statistics.aggregates import clusters_of, number_draws, number_draws_by_group
from fvl_lightning.evaluation.statistics.resampling import ALPHA, Array, Estimate, Resamples, estimate, ratio, within
from fvl_lightning.evaluation.tasks.result import TaskSample
from fvl_lightning.modeling.connector.replacement import Replacement


@dataclass(frozen=True)
class SubsetScores:
    """Scores on some questions; intervals are over new questions, those about one image drawn together."""

    questions: int
    images: int
    scores: Mapping[Subset, Estimate]
    """{sources that are kept: the score}."""
    falls: Mapping[Subset, Estimate]
    """{sources that are kept: how much better the score is with all sources}, paired by question."""
    losses: Mapping[str, Estimate]
    """{source: the fall without it}."""
    gains: Mapping[str, Estimate]
    """{source: how much better the score is with this source alone than with none}, paired by question."""
    utilization: Mapping[str, Estimate]
    """{source: its Conditional Utilization Rate}; NaN for errors, and where the score with all sources is 0."""
    information_gap: Estimate


@dataclass(frozen=True)
class KnockOut:
    """A model's scores with subsets of its sources, the others replaced."""

    sources: tuple[str, ...]
    replacement: Replacement
    metric: str
    """The name of the score in reports, such as "Accuracy, macro average over kinds"."""
    bounds: tuple[float, float]
    """Lowest and highest score."""
    overall: SubsetScores
    by_kind: Mapping[str, SubsetScores]

    @property
    def subsets(self) -> tuple[Subset, ...]:
        """The subsets that were asked, the largest first."""
        return tuple(self.overall.scores)


def knock_out_scores(
    samples: Mapping[Subset, Sequence[TaskSample]],
    sources: Sequence[str],
    replacement: Replacement,
    metric: AnswerMetric,
    alpha: float = ALPHA,
    seed: int = 0,
) -> KnockOut:
    """Returns scores, losses, utilization and gap, over all questions and by kind.

    Args:
        samples: {sources that are kept: the answers}, to the same questions in one order. All sources, each source left
            out, each one alone and none are there.
        sources: all sources, in the model's order.
        replacement: the kind of substitute, for reports.
        metric: built for the kinds of the questions and prepared; it is reset.
        alpha: one minus the level of an interval.
        seed: the seed of the bootstrap.
    """
    first, subsets = next(iter(samples.values())), list(samples)
    clusters, kinds = clusters_of(first), [sample.kind for sample in first]
    drawn, number = Resamples(clusters, seed=seed), next(iter(metric.averages))
    bounds = metric.bounds_of(number)
    answers = [list(samples[subset]) for subset in subsets]
    whole = number_draws(answers, metric, number, drawn)
    groups, by_group = number_draws_by_group(answers, metric, number, drawn, kinds)
    estimator = _Estimator(tuple(sources), subsets, bounds, metric.higher_is_better, alpha)
    found = {
        kind: estimator.scores(
            by_group[..., place],
            kinds.count(kind),
            len({cluster for cluster, own in zip(clusters, kinds, strict=True) if own == kind}),
        )
        for place, kind in enumerate(groups)
    }
    overall = estimator.scores(whole, len(first), drawn.clusters)
    return KnockOut(tuple(sources), replacement, metric.describe(number, len(groups)), bounds, overall, found)


@dataclass(frozen=True)
class _Estimator:
    """Turns draws of the scores of all subsets into estimates."""

    sources: tuple[str, ...]
    subsets: list[Subset]
    bounds: tuple[float, float]
    higher_is_better: bool | None
    alpha: float

    def scores(self, draws: Array, questions: int, clusters: int) -> SubsetScores:
        """Returns the estimates from draws `[1 + R, M]` of the scores of M subsets."""
        columns = {subset: draws[:, place] for place, subset in enumerate(self.subsets)}
        whole, none, sign = columns[self.sources], columns[()], 1.0 if self.higher_is_better else -1.0
        falls = {subset: sign * (whole - values) for subset, values in columns.items()}
        losses = {source: falls[without(self.sources, source)] for source in self.sources}
        rates = {source: ratio(loss, whole if sign > 0 else np.zeros_like(whole)) for source, loss in losses.items()}
        table = np.stack(list(rates.values()))
        reach = self.bounds[1] - self.bounds[0] if all(map(isfinite, self.bounds)) else 0.0
        relative = reach / float(whole[0]) if whole[0] > 0 else 0.0

        def found(values: Array, most: float) -> Estimate:
            return estimate(values, clusters, self.alpha, most)

        return SubsetScores(
            questions,
            clusters,
            {subset: within(found(values, reach), self.bounds) for subset, values in columns.items()},
            {subset: found(fall, reach) for subset, fall in falls.items()},
            {source: found(loss, reach) for source, loss in losses.items()},
            {source: found(sign * (columns[(source,)] - none), reach) for source in self.sources},
            {source: found(rate, relative) for source, rate in rates.items()},
            found(table.max(0) - table.min(0), relative),
        )
