"""Scores of a model by slices of the questions, and the gap of the worst group.

The worst of several groups has the lowest score partly by chance, so its gap is too large as observed. Intervals
therefore hold for all groups of a field at once: each is as many standard errors wide as the largest deviation of any
group in 95 % of the draws (max-t). If all of them hold, the true gap of the truly worst group lies between the largest
of their lower ends and the largest of their upper ends, whichever group that is. A group is reported as behind only if
its own interval, widened in this way, excludes zero.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan

import numpy as np
from numpy.typing import NDArray
from scipy import special

from fvl_lightning.core.terminal import plural
from fvl_lightning.evaluation.metrics.base import AnswerMetric
from fvl_lightning.evaluation.statistics.aggregates import clusters_of, number_draws_by_group
from fvl_lightning.evaluation.statistics.paired import same_questions
from fvl_lightning.evaluation.statistics.resampling import ALPHA, Array, Estimate, Resamples, estimate, widened, within
from fvl_lightning.evaluation.tasks.result import TaskResult, TaskSample

FEW_CLUSTERS = 30
"""A group with fewer clusters gets a warning: its interval may be too narrow."""
FEWEST_CLUSTERS = 10
"""A group with fewer clusters is left out of the gaps."""
MAX_GROUPS = 50
"""Groups of a field that are shown, those with the most questions."""
PAIR_DRAWS = 2_000
"""Draws for the intervals of all pairs of groups."""


@dataclass(frozen=True)
class GroupScore:
    """A model on the questions with one value of a field."""

    value: str
    score: Estimate
    """Its interval is for this group alone."""
    questions: int
    clusters: int
    behind: Estimate
    """Gap to all questions, above 0 if worse, with a simultaneous interval over all groups; NaN for few clusters."""


@dataclass(frozen=True)
class SliceScores:
    """A model by the values of one field."""

    field: str
    model: str
    overall: Estimate
    """All questions that have the field."""
    groups: tuple[GroupScore, ...]
    worst: str
    """The group with the worst score, among those with enough clusters; empty where there are fewer than two."""
    best: str
    worst_gap: Estimate
    """All questions against the worst group, at least 0; the interval accounts for choosing the worst."""
    spread: Estimate
    """The best group against the worst one, with such an interval."""
    behind: tuple[str, ...]
    """Groups that are shown to be worse than all questions, the worst first."""
    sentence: str
    warnings: tuple[str, ...]


def slice_scores(
    results: Mapping[str, TaskResult], metric: AnswerMetric, alpha: float = ALPHA, seed: int = 0
) -> list[SliceScores]:
    """Returns every model by every field that the questions name as a slice, in the order of fields, then of models.

    Args:
        results: {model: its result}, on the same questions.
        metric: the task's metric, built for the kinds of the questions and prepared; it is reset.
        alpha: one minus the level of the intervals.
        seed: the seed of the draws.

    Raises:
        DataError: a model was asked other questions than the first one.
    """
    models = {model: [samples] for model, samples in same_questions(results).items()}
    return averaged_slice_scores(models, metric, next(iter(results.values())).primary, alpha, seed)


def averaged_slice_scores(
    models: Mapping[str, Sequence[Sequence[TaskSample]]],
    metric: AnswerMetric,
    number: str,
    alpha: float = ALPHA,
    seed: int = 0,
) -> list[SliceScores]:
    """Returns the same as slice_scores for models that were trained several times, whose scores are averaged.

    Args:
        models: {model: its answers in each training}, all in one order; each model has as many trainings.
        metric: see slice_scores; also alpha and seed.
        number: the number of the metric.
    """
    first = next(iter(models.values()))[0]
    fields = dict.fromkeys(field for sample in first for field in sample.slices)
    return [found for field in fields for found in _by_field(field, models, metric, number, alpha, seed)]


def _by_field(
    field: str,
    models: Mapping[str, Sequence[Sequence[TaskSample]]],
    metric: AnswerMetric,
    number: str,
    alpha: float,
    seed: int,
) -> list[SliceScores]:
    first = next(iter(models.values()))[0]
    counts = Counter(sample.slices[field] for sample in first if field in sample.slices)
    shown = {value for value, _ in counts.most_common(MAX_GROUPS)}
    places = [place for place, sample in enumerate(first) if sample.slices.get(field) in shown]
    kept = [[samples[place] for place in places] for trainings in models.values() for samples in trainings]
    groups = [sample.slices[field] for sample in kept[0]]
    clusters = clusters_of(kept[0])
    resamples = Resamples(clusters, seed=seed)
    names, draws = number_draws_by_group(kept, metric, number, resamples, groups)
    whole = number_draws_by_group(kept, metric, number, resamples, [""] * len(groups))[1][..., 0]
    draws = draws.reshape(len(draws), len(models), -1, len(names)).mean(2)
    whole = whole.reshape(len(whole), len(models), -1).mean(2)
    sizes = {
        name: (counts[name], len({c for c, g in zip(clusters, groups, strict=True) if g == name})) for name in names
    }
    warnings = _warnings(field, len(counts), len(first) - sum(counts.values()), sizes)
    low, high = metric.bounds_of(number)
    table = _Table(field, names, sizes, resamples.clusters, alpha, (low, high), metric.higher_is_better is not False)
    return [table.scores(model, draws[:, place], whole[:, place], warnings) for place, model in enumerate(models)]


def _warnings(field: str, values: int, without: int, sizes: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
    few = [name for name, (_, clusters) in sizes.items() if FEWEST_CLUSTERS <= clusters < FEW_CLUSTERS]
    fewest = [name for name, (_, clusters) in sizes.items() if clusters < FEWEST_CLUSTERS]
    found = []
    if few:
        found.append(f"{field}: fewer than {FEW_CLUSTERS} clusters, an interval may be too narrow: {_list(few)}")
    if fewest:
        found.append(f"{field}: fewer than {FEWEST_CLUSTERS} clusters, left out of the gaps: {_list(fewest)}")
    if values > MAX_GROUPS:
        found.append(f"{field}: {values} values, of which the {MAX_GROUPS} with the most questions are shown")
    if without:
        found.append(f"{field}: {plural(without, 'question')} without it, left out")
    return tuple(found)


def _list(names: Sequence[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


@dataclass(frozen=True)
class _Table:
    """The groups of a field, and how intervals are computed."""

    field: str
    names: Sequence[str]
    sizes: Mapping[str, tuple[int, int]]
    """{group: its questions and clusters}."""
    clusters: int
    alpha: float
    bounds: tuple[float, float]
    """Lowest and highest value of the number."""
    higher_is_better: bool

    @property
    def reach(self) -> float:
        """The largest change of the number; 0 where it has no bounds."""
        reach = self.bounds[1] - self.bounds[0]
        return reach if isfinite(reach) else 0.0

    def score(self, draws: Array, clusters: int) -> Estimate:
        """Returns a number with its interval, within the bounds."""
        return within(estimate(draws, clusters, self.alpha, self.reach), self.bounds)

    def scores(self, model: str, draws: Array, whole: Array, warnings: tuple[str, ...]) -> SliceScores:
        """Returns a model's scores; `draws` `[1 + r, G]` of the groups and `whole` `[1 + r]` of all questions."""
        sign = 1.0 if self.higher_is_better else -1.0
        tested = [place for place, name in enumerate(self.names) if self.sizes[name][1] >= FEWEST_CLUSTERS]
        tested = [place for place in tested if isfinite(draws[0, place])]
        gaps = sign * (whole[:, None] - draws[:, tested])
        number = np.array([self.sizes[self.names[place]][1] for place in tested], dtype=np.intp)
        low, high = self._simultaneous(gaps, number)
        ends = zip(low.tolist(), high.tolist(), strict=True)
        behind = dict(zip(tested, map(Estimate, gaps[0].tolist(), ends), strict=True))
        groups = tuple(
            GroupScore(
                name,
                self.score(draws[:, place], self.sizes[name][1]),
                *self.sizes[name],
                behind.get(place, Estimate(nan)),
            )
            for place, name in enumerate(self.names)
        )
        overall = self.score(whole, self.clusters)
        if len(tested) < 2:
            sentence = f"{self.field}: fewer than two groups have enough clusters, so there is no gap to compute."
            nothing = Estimate(nan)
            return SliceScores(self.field, model, overall, groups, "", "", nothing, nothing, (), sentence, warnings)
        worst, best = (self.names[tested[int(place)]] for place in (gaps[0].argmax(), gaps[0].argmin()))
        order = sorted(range(len(tested)), key=lambda place: -gaps[0, place])
        named = tuple(self.names[tested[place]] for place in order if low[place] > 0)
        worst_gap = _largest(gaps[0], low, high)
        spread = self._spread(sign * draws[: 1 + PAIR_DRAWS, tested], number)
        sentence = self._sentence(named, worst, worst_gap, groups)
        return SliceScores(
            self.field, model, overall, groups, worst, best, worst_gap, spread, named, sentence, warnings
        )

    def _simultaneous(self, draws: Array, clusters: NDArray[np.intp]) -> tuple[Array, Array]:
        """Returns both ends `[G]` of simultaneous max-t intervals for the numbers `[1 + r, G]`."""
        if draws.shape[0] < 2 or not draws.shape[1]:
            return np.full(draws.shape[1], np.nan), np.full(draws.shape[1], np.nan)
        error = np.nanstd(draws[1:], axis=0, ddof=1)
        # Where no draw differs, the error is as large as if one cluster had been different.
        error = np.where(error > 0, error, self.reach / clusters)
        deviation = np.abs(draws[1:] - draws[0]) / np.where(error > 0, error, np.inf)
        largest = np.nanmax(np.where(np.isfinite(deviation), deviation, 0.0), axis=1)
        wider = np.array([widened(int(number), self.alpha) for number in clusters])
        half = float(np.quantile(largest, 1 - self.alpha)) * error * wider / special.ndtri(1 - self.alpha / 2)
        return draws[0] - half, draws[0] + half

    def _spread(self, draws: Array, clusters: NDArray[np.intp]) -> Estimate:
        """Returns the largest difference between two groups, with its interval, simultaneous over all pairs."""
        first, second = np.triu_indices(draws.shape[1], 1)
        differences = draws[:, first] - draws[:, second]
        low, high = self._simultaneous(differences, np.minimum(clusters[first], clusters[second]))
        return _largest(*(np.concatenate(ends) for ends in (
            (differences[0], -differences[0]), (low, -high), (high, -low)
        )))  # fmt: skip

    def _sentence(self, named: Sequence[str], worst: str, gap: Estimate, groups: Sequence[GroupScore]) -> str:
        level = f"{1 - self.alpha:.0%} interval".replace("%", " %")
        if not named:
            ends = f"{level} {gap.interval[0]:.3f} to {gap.interval[1]:.3f}"
            return (
                f"{self.field}: no group is shown to be worse than all questions. The largest observed gap is "
                f"{gap.value:.3f} ({worst}); that of the truly worst group has the {ends}."
            )
        by_name = {group.value: group for group in groups}
        listed = "; ".join(
            f"{name} by {by_name[name].behind.value:.3f} ({by_name[name].behind.interval[0]:.3f} to "
            f"{by_name[name].behind.interval[1]:.3f})"
            for name in named
        )
        return f"{self.field}: worse than all questions, with {level}s that hold for all groups at once: {listed}."


def _largest(values: Array, low: Array, high: Array) -> Estimate:
    """Returns the largest of several numbers, with an interval from those of all of them, cut at 0."""
    return Estimate(float(values.max()), (max(0.0, float(low.max())), float(high.max())))
