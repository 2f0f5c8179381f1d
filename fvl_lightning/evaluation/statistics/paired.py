"""Scores of several models on the same questions: intervals, and paired differences."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

from fvl_lightning.core.errors import DataError, unknown_name
from fvl_lightning.evaluation.metrics.base import AnswerMetric
from fvl_lightning.evaluation.statistics.aggregates import clusters_of, number_draws
from fvl_lightning.evaluation.statistics.resampling import ALPHA, LABEL, Array, Estimate, Resamples, estimate, within
from fvl_lightning.evaluation.tasks.result import TaskResult, TaskSample


@dataclass(frozen=True)
class PairedDifference:
    """The score of one model minus that of another one on the same questions."""

    model: str
    baseline: str
    difference: Estimate


@dataclass(frozen=True)
class ScoreStatistics:
    """The scores of models on a task, with intervals over clusters of questions."""

    label: str
    """Description of the intervals, for reports."""
    alpha: float
    """One minus the level of each interval, without adjustment for several intervals."""
    questions: int
    clusters: int
    scores: dict[str, Estimate]
    """{model: its primary number}."""
    differences: tuple[PairedDifference, ...]


def score_statistics(
    results: Mapping[str, TaskResult],
    metric: AnswerMetric,
    baseline: str | None = None,
    alpha: float = ALPHA,
    seed: int = 0,
) -> ScoreStatistics:
    """Returns the primary number of every model with its interval, and the differences of pairs of models.

    Questions of a cluster are drawn together, and all models are scored on the same draws.

    Args:
        results: {model: its result}, on the same questions; a control of a model may stand for a model.
        metric: the task's metric, built for the kinds of the questions and prepared; it is reset.
        baseline: the model that every other one is compared to; None for all pairs.
        alpha: one minus the level of an interval.
        seed: the seed of the draws.

    Raises:
        ConfigError: `baseline` is not one of the models.
        DataError: a model was asked other questions than the first one.
    """
    if baseline is not None and baseline not in results:
        raise unknown_name("model", baseline, results, "baseline")
    drawn = drawn_numbers(results, metric, alpha, seed)
    names = list(results)
    pairs = [
        (model, other)
        for place, other in enumerate(names)
        for model in ([name for name in names if name != other] if other == baseline else names[place + 1 :])
        if baseline in (None, other)
    ]
    differences = tuple(PairedDifference(model, other, drawn.difference(model, other)) for model, other in pairs)
    scores = {name: drawn.score(name) for name in names}
    return ScoreStatistics(LABEL, alpha, drawn.questions, drawn.clusters, scores, differences)


@dataclass(frozen=True)
class DrawnNumbers:
    """The primary number of several results, on the questions as they are and in every draw of their clusters."""

    draws: dict[str, Array]
    """{name: `[1 + R]`}; all names have the same draws."""
    questions: int
    clusters: int
    bounds: tuple[float, float]
    """Lowest and highest value of the number."""
    alpha: float

    def score(self, name: str) -> Estimate:
        """Returns the number of one result, with an interval within the number's bounds."""
        return within(self._estimate(self.draws[name]), self.bounds)

    def difference(self, name: str, other: str) -> Estimate:
        """Returns the number of `name` minus that of `other`."""
        return self._estimate(self.draws[name] - self.draws[other])

    def _estimate(self, draws: Array) -> Estimate:
        reach = self.bounds[1] - self.bounds[0]
        return estimate(draws, self.clusters, self.alpha, reach if isfinite(reach) else 0.0)


def drawn_numbers(
    results: Mapping[str, TaskResult],
    metric: AnswerMetric,
    alpha: float = ALPHA,
    seed: int = 0,
    resamples: int | None = None,
) -> DrawnNumbers:
    """Returns the primary numbers of results on the same questions.

    Arguments and errors are those of score_statistics; `resamples` is that of Resamples.
    """
    models = same_questions(results)
    number, samples = next(iter(results.values())).primary, next(iter(models.values()))
    drawn = Resamples(clusters_of(samples), resamples, seed)
    draws = number_draws(list(models.values()), metric, number, drawn).T
    by_name = dict(zip(models, draws, strict=True))
    return DrawnNumbers(by_name, len(samples), drawn.clusters, metric.bounds_of(number), alpha)


def same_questions(results: Mapping[str, TaskResult]) -> dict[str, list[TaskSample]]:
    """Returns {model: its answers}, in the order of the first model's.

    Raises:
        DataError: there are no questions, or a model has other ones than the first model, or other references.
    """
    names = list(results)
    if not names or not results[names[0]].samples:
        raise DataError("no questions were answered; a comparison of models needs at least one")
    order = [sample.id for sample in results[names[0]].samples]
    truths = {sample.id: sample.reference.answers for sample in results[names[0]].samples}
    found: dict[str, list[TaskSample]] = {}
    for name, result in results.items():
        by_id = {sample.id: sample for sample in result.samples}
        if by_id.keys() != truths.keys() or len(by_id) != len(result.samples):
            other = sorted(by_id.keys() ^ truths.keys())[:1]
            example = f", such as {other[0]}" if other else ""
            raise DataError(f"task {result.task}: {name} was asked other questions than {names[0]}{example}")
        found[name] = [by_id[question] for question in order]
        for sample in found[name]:
            if sample.reference.answers != truths[sample.id]:
                raise DataError(
                    f"task {result.task}: question {sample.id} of {name} has other references than that of {names[0]}"
                )
    return found
