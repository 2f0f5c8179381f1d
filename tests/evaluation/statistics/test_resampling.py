"""Intervals over new questions: what is drawn, how wide they are, and how often the truth is inside."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.evaluation.metrics.accuracy import AccuracyMetric
from fvl_lightning.evaluation.metrics.base import AnswerMetric, KindScores, Reference
from fvl_lightning.evaluation.statistics import aggregates
from fvl_lightning.evaluation.statistics.aggregates import aggregate, number_draws, number_draws_by_group
from fvl_lightning.evaluation.statistics.means import mean_draws, mean_estimate
from fvl_lightning.evaluation.statistics.paired import score_statistics
from fvl_lightning.evaluation.statistics.resampling import Resamples, estimate
from fvl_lightning.evaluation.tasks.result import TaskResult, TaskSample

Bools = NDArray[np.bool_]
MACRO, OVERALL = AccuracyMetric.averages
PER_CLUSTER = 4


class YesF1Metric(AnswerMetric):
    """F1 of yes: a number that is no mean of scores. Its states are sums, or lists of what was answered."""

    title, criterion, explanation, is_mean = "F1", "F1", "Answers are yes or no.", False

    @dataclass
    class Config:
        """Whether the states are sums."""

        sums: bool = True

    def __init__(self, config: Config, kinds: list[str]) -> None:
        super().__init__(config, kinds)
        if config.sums:
            self.add_state("counts", torch.zeros(3), dist_reduce_fx="sum")
        else:
            self.add_state("answers", [], dist_reduce_fx="cat")

    def score(self, text: str, truth: str) -> float:
        return float(text == truth)

    def update(self, kind: str, text: str, reference: Reference) -> None:
        truth = reference.answers[0]
        row = torch.tensor([text == truth == "yes", text == "yes", truth == "yes"], dtype=torch.float32)
        if self.config.sums:
            self.counts += row
        else:
            self.answers.append(row)

    def compute(self) -> KindScores:
        hits, given, true = (self.counts if self.config.sums else torch.stack(self.answers).sum(0)).tolist()
        f1 = 2 * hits / (given + true)
        return KindScores(f1, f1)


def samples(right: Bools, clusters: int, kinds: list[str] | None = None) -> list[TaskSample]:
    """One sample per entry of `right`; the truth alternates between yes and no."""
    made = []
    for number, hit in enumerate(right):
        truth = ("yes", "no")[number % 2]
        answer = truth if hit else ("no", "yes")[number % 2]
        made.append(
            TaskSample(
                str(number), answer, answer, float(hit), Reference((truth,)), kinds[number] if kinds else "all",
                str(number * clusters // len(right)), {"half": str(2 * number // len(right))},
            )
        )  # fmt: skip
    return made


def result(made: list[TaskSample], primary: str = OVERALL) -> TaskResult:
    scores = aggregate(accuracy(made), made)
    return TaskResult("t", "T", "accuracy", primary, scores, made)


def accuracy(made: list[TaskSample]) -> AccuracyMetric:
    return AccuracyMetric(AccuracyMetric.Config(), {sample.kind for sample in made})


def answered(clusters: int, generator: np.random.Generator, gain: float) -> tuple[Bools, Bools]:
    """Answers of two models; how hard a cluster is weighs on all of its questions, in part for both models."""
    shared = generator.uniform(-0.2, 0.2, (clusters, 1))
    own = generator.uniform(-0.2, 0.2, (2, clusters, 1))
    chance = 0.5 + shared + own + np.array([0, gain]).reshape(2, 1, 1)
    right = (generator.random((2, clusters, PER_CLUSTER)) < chance).reshape(2, -1)
    return right[0], right[1]


def test_scores_and_differences_of_pairs() -> None:
    first, second = answered(60, np.random.default_rng(0), 0.1)
    results = {"a": result(samples(first, 60)), "b": result(samples(second, 60)), "c": result(samples(~first, 60))}
    found = score_statistics(results, accuracy(results["a"].samples))
    assert (found.questions, found.clusters) == (240, 60)
    assert {model: entry.value for model, entry in found.scores.items()} == pytest.approx(
        {"a": first.mean(), "b": second.mean(), "c": 1 - first.mean()}
    )
    assert [(pair.model, pair.baseline) for pair in found.differences] == [("b", "a"), ("c", "a"), ("c", "b")]
    for pair in found.differences:
        assert pair.difference.value == pytest.approx(results[pair.model].score - results[pair.baseline].score)
    (against,) = [p for p in found.differences if (p.model, p.baseline) == ("b", "a")]
    only = score_statistics(results, accuracy(results["a"].samples), baseline="a").differences
    assert against in only
    assert {pair.baseline for pair in only} == {"a"}
    last = score_statistics(results, accuracy(results["a"].samples), baseline="c").differences
    assert [(pair.model, pair.baseline) for pair in last] == [("a", "c"), ("b", "c")]
    # The half-length is that of the normal interval over the clusters' means.
    by_cluster = (second.astype(float) - first).reshape(60, PER_CLUSTER).mean(1)
    low, high = against.difference.interval
    assert (high - low) / 2 == pytest.approx(1.98 * by_cluster.std() / np.sqrt(60), rel=0.1)


def test_macro_averages_weigh_kinds_alike() -> None:
    right = np.r_[np.zeros(90, bool), np.ones(10, bool)]
    made = samples(right, 100, ["colour"] * 90 + ["count"] * 10)
    assert score_statistics({"a": result(made, MACRO)}, accuracy(made)).scores["a"].value == pytest.approx(0.5)
    assert score_statistics({"a": result(made)}, accuracy(made)).scores["a"].value == pytest.approx(0.1)


def test_other_questions_are_refused_and_another_order_is_not() -> None:
    made = samples(np.ones(8, bool), 4)
    whole = result(made)
    found = score_statistics({"a": whole, "b": result(made[::-1])}, accuracy(made))
    assert found.differences[0].difference.value == 0
    with pytest.raises(DataError, match="b was asked other questions than a, such as 7"):
        score_statistics({"a": whole, "b": result(made[:-1])}, accuracy(made))
    with pytest.raises(DataError, match="has other references"):
        score_statistics({"a": whole, "b": result(_swapped(made))},
                         accuracy(made))  # fmt: skip
    with pytest.raises(ConfigError, match="unknown model 'd'"):
        score_statistics({"a": whole}, accuracy(made), baseline="d")


def _swapped(made: list[TaskSample]) -> list[TaskSample]:
    """The same ids with the references of their neighbours."""
    return [
        TaskSample(sample.id, "", "", 0.0, other.reference)
        for sample, other in zip(made, [*made[1:], made[0]], strict=True)
    ]


def test_certainty_is_not_claimed_where_nothing_varies() -> None:
    made = samples(np.ones(20, bool), 20)
    found = score_statistics({"a": result(made), "b": result(made)}, accuracy(made))
    # All of 20 clusters are right: with a probability of 2.5 % that also happens at 0.025 ** (1 / 20) = 0.83.
    assert found.scores["a"].interval == pytest.approx((0.025**0.05, 1))
    low, high = found.differences[0].difference.interval
    assert low == -high < 0
    single = score_statistics({"a": result(samples(np.ones(4, bool), 1))}, accuracy(made)).scores["a"]
    assert single.value == 1
    assert np.isnan(single.interval).all()


def test_few_clusters_have_wider_intervals_than_plain_percentiles() -> None:
    draws = np.r_[0.0, np.linspace(-1, 1, 2001)]
    assert estimate(draws, 5).interval[1] > estimate(draws, 500).interval[1] == pytest.approx(0.95, abs=0.002)


def test_the_interval_of_a_mean_without_draws_agrees_with_the_bootstrap() -> None:
    first, second = answered(80, np.random.default_rng(7), 0.1)
    names, difference = np.repeat(np.arange(80), PER_CLUSTER).tolist(), second.astype(float) - first
    draws = mean_draws(difference, Resamples(names))[:, 0]
    drawn, computed = estimate(draws, 80), mean_estimate(difference, names)
    assert computed.value == pytest.approx(drawn.value)
    assert computed.interval == pytest.approx(drawn.interval, abs=0.01)
    alike = mean_estimate(np.zeros(20), range(20), reach=1.0)
    assert alike.interval == pytest.approx((-(1 - 0.025**0.05), 1 - 0.025**0.05))
    assert np.isnan(mean_estimate([1.0, 0.0], ["one", "one"]).interval).all()


def test_a_number_that_is_no_mean_is_computed_again_for_every_draw() -> None:
    first, second = answered(30, np.random.default_rng(1), 0.2)
    models = [samples(first, 30), samples(second, 30)]
    resamples = Resamples([sample.cluster for sample in models[0]], resamples=20)
    by_sums = number_draws(models, YesF1Metric(YesF1Metric.Config(), ["all"]), OVERALL, resamples)
    again = number_draws(models, YesF1Metric(YesF1Metric.Config(sums=False), ["all"]), OVERALL, resamples)
    assert by_sums.shape == (21, 2)
    assert by_sums == pytest.approx(again)
    expected = aggregate(YesF1Metric(YesF1Metric.Config(), ["all"]), models[1]).overall
    assert by_sums[0, 1] == pytest.approx(expected)
    names, halves = number_draws_by_group(
        models, YesF1Metric(YesF1Metric.Config(), ["all"]), OVERALL, resamples, [s.slices["half"] for s in models[0]]
    )
    assert names == ["0", "1"]
    part = aggregate(YesF1Metric(YesF1Metric.Config(), ["all"]), models[1][60:]).overall
    assert halves[0, 1, 1] == pytest.approx(part)


def test_time_for_a_number_that_is_no_mean_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    made = samples(np.ones(40, bool), 20)
    metric = YesF1Metric(YesF1Metric.Config(sums=False), ["all"])
    monkeypatch.setattr(aggregates, "MAX_DRAWN_ANSWERS", 40 * 70)
    resamples = Resamples([sample.cluster for sample in made])
    assert len(number_draws([made], metric, OVERALL, resamples)) == 71
    monkeypatch.setattr(aggregates, "MAX_DRAWN_ANSWERS", 40 * 10)
    draws = number_draws([made], metric, OVERALL, resamples)
    assert len(draws) == 1
    assert np.isnan(estimate(draws[:, 0], 20).interval).all()


SIMULATIONS = 200
TOLERANCE = 0.04
"""95 % of the intervals should hold the truth; over 200 simulations 91 to 99 % do with a probability above 0.98."""


@pytest.mark.parametrize("clusters", [12, 100])
def test_the_truth_is_inside_95_of_100_intervals(clusters: int) -> None:
    generator, truth = np.random.default_rng(clusters), 0.1
    names = np.repeat(np.arange(clusters), PER_CLUSTER).tolist()
    held = 0
    for seed in range(SIMULATIONS):
        draws = mean_draws(answered(clusters, generator, truth), Resamples(names, resamples=400, seed=seed))
        low, high = estimate(draws[:, 1] - draws[:, 0], clusters).interval
        held += low <= truth <= high
    assert abs(held / SIMULATIONS - 0.95) <= TOLERANCE
