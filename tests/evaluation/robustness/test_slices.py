"""Slices over made-up answers: a planted group is found and named, others are not, and few clusters get a warning."""

from math import nan

import numpy as np
import pytest

from fvl_lightning.evaluation.metrics.accuracy import AccuracyMetric
from fvl_lightning.evaluation.metrics.base import KindScores, Reference
from fvl_lightning.evaluation.robustness import slices as module
from fvl_lightning.evaluation.robustness.slices import SliceScores, slice_scores
from fvl_lightning.evaluation.statistics import resampling
from fvl_lightning.evaluation.tasks.result import TaskResult, TaskSample

GROUPS = "abcdef"
PER_CLUSTER = 3
SIMULATIONS = 30


def answered(chances: dict[str, float], clusters: int, generator: np.random.Generator) -> TaskResult:
    """Answers to PER_CLUSTER questions in each of `clusters` clusters of each group; how hard a cluster is differs."""
    made = []
    for group, chance in chances.items():
        hard = np.clip(chance + generator.uniform(-0.15, 0.15, (clusters, 1)), 0, 1)
        right = generator.random((clusters, PER_CLUSTER)) < hard
        for (cluster, question), hit in np.ndenumerate(right):
            made.append(
                TaskSample(
                    f"{group} {cluster} {question}", "", "yes" if hit else "no", float(hit), Reference(("yes",)),
                    cluster=f"{group} {cluster}", slices={"light": group},
                )
            )  # fmt: skip
    _, overall = AccuracyMetric.averages
    return TaskResult("t", "T", "accuracy", overall, KindScores(nan, nan), made)


def metric() -> AccuracyMetric:
    return AccuracyMetric(AccuracyMetric.Config(), ["all"])


def sliced(result: TaskResult, seed: int = 0) -> SliceScores:
    (found,) = slice_scores({"m": result}, metric(), seed=seed)
    return found


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "RESAMPLES", 300)
    monkeypatch.setattr(resampling, "FEWEST_RESAMPLES", 300)


def test_a_planted_group_is_found_and_named_and_no_other() -> None:
    generator = np.random.default_rng(0)
    named, wrong, held = 0, 0, 0
    true_gap = 0.25 * 5 / 6  # all questions are at 0.75 - 0.25 / 6
    for seed in range(SIMULATIONS):
        found = sliced(answered({**dict.fromkeys(GROUPS, 0.75), "d": 0.5}, 40, generator), seed)
        named += "d" in found.behind
        wrong += bool(set(found.behind) - {"d"})
        low, high = found.worst_gap.interval
        held += low <= true_gap <= high
    # With 40 clusters of 3 questions a gap of 0.21 is about four standard errors of its estimate.
    assert named >= 0.9 * SIMULATIONS
    assert wrong <= 2
    assert held >= 0.9 * SIMULATIONS


def test_no_group_is_named_where_none_is_behind() -> None:
    generator = np.random.default_rng(1)
    claims, observed = 0, []
    for seed in range(SIMULATIONS):
        found = sliced(answered(dict.fromkeys(GROUPS, 0.75), 40, generator), seed)
        claims += bool(found.behind)
        observed.append(found.worst_gap.value)
        assert found.worst_gap.interval[0] == 0 or found.behind
    # At most 5 % of all fields without a bias; 5 or more of 30 would have a probability of 2 %.
    assert claims <= 4
    # The worst of six looks behind although none is, and this is what the intervals account for.
    assert np.mean(observed) > 0.04


def test_what_a_field_says() -> None:
    found = sliced(answered({"dark": 0.4, "bright": 0.9, "dim": 0.9}, 60, np.random.default_rng(2)))
    assert (found.field, found.worst, found.behind) == ("light", "dark", ("dark",))
    assert found.sentence.startswith("light: worse than all questions, with 95 % intervals that hold for all groups at")
    assert "dark by 0." in found.sentence
    scores = {group.value: group for group in found.groups}
    assert list(scores) == ["bright", "dark", "dim"]
    assert (scores["dark"].questions, scores["dark"].clusters) == (180, 60)
    assert scores["dark"].behind.value == pytest.approx(found.overall.value - scores["dark"].score.value)
    assert found.worst_gap.value == scores["dark"].behind.value
    best = scores[found.best].score.value
    assert found.spread.value == pytest.approx(best - scores["dark"].score.value)
    low, high = found.spread.interval
    assert 0.3 < low < found.spread.value < high
    assert found.warnings == ()


def test_groups_with_few_clusters_get_a_warning_and_have_no_part_in_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    result = answered({"many": 0.7, "others": 0.7}, 60, generator)
    few = answered({"rare": 0.0}, 4, generator).samples
    some = answered({"some": 0.7}, 20, generator).samples
    without = [TaskSample("x", "", "yes", 1.0, Reference(("yes",)))]
    found = sliced(TaskResult("t", "T", "accuracy", result.primary, result.scores,
                              [*result.samples, *few, *some, *without]))  # fmt: skip
    assert found.worst != "rare"
    assert found.behind == ()
    assert {group.value: group.clusters for group in found.groups}["rare"] == 4
    assert found.warnings == (
        "light: fewer than 30 clusters, an interval may be too narrow: some",
        "light: fewer than 10 clusters, left out of the gaps: rare",
        "light: 1 question without it, left out",
    )
    monkeypatch.setattr(module, "MAX_GROUPS", 2)
    found = sliced(TaskResult("t", "T", "accuracy", result.primary, result.scores, [*result.samples, *few]))
    assert [group.value for group in found.groups] == ["many", "others"]
    assert "light: 3 values, of which the 2 with the most questions are shown" in found.warnings


def test_a_group_without_errors_and_a_single_group() -> None:
    found = sliced(answered({"all right": 2.0, "half": 0.5}, 30, np.random.default_rng(4)))
    scores = {group.value: group.score for group in found.groups}
    low, high = scores["all right"].interval
    assert low < high == 1, "an accuracy is at most 1"
    wrong = sliced(answered({"all wrong": -2.0, "half": 0.5}, 4, np.random.default_rng(4)))
    low, high = {group.value: group.score for group in wrong.groups}["all wrong"].interval
    assert 0 == low < high, "and at least 0, also where no answer differs"
    assert found.behind == ("half",)
    alone = sliced(answered({"one": 0.5}, 30, np.random.default_rng(5)))
    assert alone.worst == ""
    assert "fewer than two groups" in alone.sentence
