"""Scores of several models on the same questions: intervals, and paired differences."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite

from fvl_lightning.core.errors import DataError, unknown_name
from fvl_lightning.evaluation.metrics.base import AnswerMetric
from fvl_lightning.evaluation.statistics.aggregates import clusters_of, number_draws
from fvl_lightning.evaluation.statistics.resampling import ALPHA, LABEL, Array, Estimate, Resamples, estimate
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
    """What the intervals cover, for reports."""
    alpha: float
    """One minus the level of each interval, which holds for its number alone."""
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
        metric: the task's metric, built for the kinds of the questions and prepared; its states are lost.
        baseline: the model that every other one is compared to; None for all pairs.
        alpha: one minus the level of an interval.
        seed: the seed of the draws.

    Raises:
        ConfigError: `baseline` is not one of the models.
        DataError: a model was asked other questions than the first one.
    """
    if baseline is not None and baseline not in results:
        raise unknown_name("model", baseline, results, "baseline")
    models, first = same_questions(results), next(iter(results.values()))
    samples = next(iter(models.values()))
    resamples = Resamples(clusters_of(samples), seed=seed)
    number = first.primary
    draws = dict(zip(models, number_draws(list(models.values()), metric, number, resamples).T, strict=True))
    low, high = metric.bounds_of(number)
    reach = high - low if isfinite(high - low) else 0.0

    def interval_of(values: Array) -> Estimate:
        return estimate(values, resamples.clusters, alpha, reach)

    scores = {model: _bounded(interval_of(values), low, high) for model, values in draws.items()}
    pairs = [
        (model, other)
        for place, other in enumerate(models)
        for model in ([name for name in models if name != other] if other == baseline else list(models)[place + 1 :])
        if baseline in (None, other)
    ]
    differences = tuple(
        PairedDifference(model, other, interval_of(draws[model] - draws[other])) for model, other in pairs
    )
    return ScoreStatistics(LABEL, alpha, len(samples), resamples.clusters, scores, differences)


def same_questions(results: Mapping[str, TaskResult]) -> dict[str, list[TaskSample]]:
    """Returns {model: its answers}, in the order of the first model's.

    Raises:
        DataError: there are no questions, or a model has other ones than the first model, or other references.
    """
    names = list(results)
    if not names or not results[names[0]].samples:
        raise DataError("no questions were answered, so there is nothing to compare")
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


def _bounded(found: Estimate, low: float, high: float) -> Estimate:
    lowest, highest = found.interval
    return replace(found, interval=(max(lowest, low), min(highest, high))) if isfinite(lowest) else found
