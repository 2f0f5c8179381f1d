"""Results of models on one task for a report: scores, differences, controls, corruptions, biases, slices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import nan

from fvl_lightning.core.errors import DataError
from fvl_lightning.evaluation.metrics.base import AnswerMetric
from fvl_lightning.evaluation.robustness.bias import BiasCheck, bias_checks
from fvl_lightning.evaluation.robustness.corruptions import CORRUPTIONS
from fvl_lightning.evaluation.robustness.prior import PRIOR, prior_result
from fvl_lightning.evaluation.robustness.slices import SliceScores, slice_scores
from fvl_lightning.evaluation.statistics import resampling
from fvl_lightning.evaluation.statistics.aggregates import aggregate, is_mean
from fvl_lightning.evaluation.statistics.paired import ScoreStatistics, drawn_numbers, score_statistics
from fvl_lightning.evaluation.statistics.resampling import ALPHA, Estimate
from fvl_lightning.evaluation.tasks.result import TaskResult

OF_PRIOR = "answer prior"
"""Name of the answer prior in the tables of models."""


@dataclass(frozen=True)
class VariedScore:
    """A model under a control or a corruption."""

    model: str
    variation: str
    score: Estimate
    change: Estimate
    """Its score minus that on the task as it is."""

    @property
    def corruption(self) -> tuple[str, int] | None:
        """The name of the corruption and its strength; None for a control."""
        name, _, strength = self.variation.rpartition("-")
        return (name, int(strength)) if name in CORRUPTIONS else None


@dataclass(frozen=True)
class TaskAssessment:
    """Models on one task."""

    task: str
    title: str
    metric: str
    number: str
    """The number that stands for the task, such as macro."""
    described: str
    """Its name in reports."""
    bounds: tuple[float, float]
    higher_is_better: bool
    statistics: ScoreStatistics
    by_kind: dict[str, dict[str, float]]
    """{model: {kind of question: score}}."""
    further: dict[str, dict[str, float]]
    """{model: {name: value}} of the further numbers that the metric reports."""
    prior: Estimate
    """NaN for a metric that would send the prior's answers to a server."""
    above_prior: dict[str, Estimate]
    """{model: its score minus that of the answer prior}."""
    varied: tuple[VariedScore, ...]
    biases: tuple[BiasCheck, ...]
    slices: tuple[SliceScores, ...]
    empty: dict[str, int] = field(default_factory=dict)
    """{model: questions to which its answer is empty}."""
    attainable: float = nan
    """The number if every question had its best possible answer; NaN for the bound of the metric, or if not known."""
    published: dict[str, float] = field(default_factory=dict)
    """{model: published score}, on the metric's own scale."""


def assess(
    results: Mapping[str, Sequence[TaskResult]],
    metric: AnswerMetric,
    baseline: str | None = None,
    published: Mapping[str, float] | None = None,
    alpha: float = ALPHA,
    seed: int = 0,
) -> TaskAssessment:
    """Returns the assessment of models on one task.

    Args:
        results: {model: its results on the task, one as it is (`variation` empty) and any under variations}.
        metric: the task's metric with its options, built for the kinds of the questions; it is reset.
        baseline: the model that every other one is compared to; None for all pairs.
        published: {model: published score}, on the metric's own scale.
        alpha: one minus the level of the intervals.
        seed: the seed of the draws.

    Raises:
        ConfigError: `baseline` is not one of the models.
        DataError: a model has no result on the task as it is, or results have different questions.
    """
    plain = {model: _as_it_is(model, found) for model, found in results.items()}
    first = next(iter(plain.values()))
    metric.prepare([sample.reference for sample in first.samples])
    statistics = score_statistics(plain, metric, baseline, alpha, seed)
    prior, above_prior = Estimate(nan), dict.fromkeys(plain, Estimate(nan))
    if not metric.asks_server:
        drawn = drawn_numbers(plain | {OF_PRIOR: prior_result(first, metric)}, metric, alpha, seed)
        prior, above_prior = drawn.score(OF_PRIOR), {model: drawn.difference(model, OF_PRIOR) for model in plain}
    return TaskAssessment(
        task=first.task,
        title=first.title,
        metric=first.metric,
        number=first.primary,
        described=metric.describe(first.primary, len(metric.kinds)),
        bounds=metric.bounds_of(first.primary),
        higher_is_better=metric.higher_is_better is not False,
        statistics=statistics,
        by_kind={model: dict(result.scores.by_kind) for model, result in plain.items()},
        further={model: dict(result.scores.further) for model, result in plain.items()},
        prior=prior,
        above_prior=above_prior,
        varied=tuple(_varied(results, plain, metric, alpha, seed)),
        biases=tuple(bias_checks(plain, alpha)),
        slices=tuple(slice_scores(plain, metric, alpha, seed)),
        empty={model: sum(not sample.prediction for sample in result.samples) for model, result in plain.items()},
        attainable=_attainable(first, metric),
        published=dict(published or {}),
    )


def _as_it_is(model: str, found: Sequence[TaskResult]) -> TaskResult:
    plain = [result for result in found if not result.variation]
    if len(plain) != 1:
        raise DataError(f"{model} has {len(plain)} results on the task as it is; a report needs exactly one")
    return plain[0]


def _attainable(result: TaskResult, metric: AnswerMetric) -> float:
    """Returns the number of a task whose questions all have their best possible answers; NaN if it is the bound."""
    if not is_mean(metric, result.primary):
        return nan
    best = [replace(sample, score=metric.attainable(sample.reference)) for sample in result.samples]
    bound = metric.bounds[1 if metric.higher_is_better else 0]
    if all(sample.score == bound for sample in best):
        return nan
    return aggregate(metric, best).average(result.primary)


def _varied(
    results: Mapping[str, Sequence[TaskResult]],
    plain: Mapping[str, TaskResult],
    metric: AnswerMetric,
    alpha: float,
    seed: int,
) -> list[VariedScore]:
    """Returns the score of every model under each variation, without the answer prior."""
    varied = [
        (model, result)
        for model, found in results.items()
        for result in found
        if result.variation and result.variation != PRIOR
    ]
    if not varied:
        return []
    key = "{0}\n{1}".format
    asked = {key(model, ""): result for model, result in plain.items()}
    asked |= {key(model, result.variation): result for model, result in varied}
    # Results are many, and kinds may be: with as many draws as for the scores, they would not fit into memory.
    drawn = drawn_numbers(asked, metric, alpha, seed, resampling.FEWEST_RESAMPLES)
    return [
        VariedScore(
            model,
            result.variation,
            drawn.score(key(model, result.variation)),
            drawn.difference(key(model, result.variation), key(model, "")),
        )
        for model, result in varied
    ]
