"""Scores of several tasks: the family that they are tested as, all pairs of arms, and intervals over new questions."""

from itertools import pairwise, product
from math import isnan
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, false_discovery_control

from fvl_lightning.comparison.result_files.cell import ArmResult
from fvl_lightning.comparison.result_files.statistics import ComparisonStatistics, TaskFamily
from fvl_lightning.comparison.result_files.tasks import TaskEntry, TaskEvaluation, TaskScores, averages_of
from fvl_lightning.comparison.scoring.names import is_task_score, split_task_score
from fvl_lightning.comparison.statistics.contrasts import contrasts, pairs_of
from fvl_lightning.comparison.statistics.families import Correction, compare_family
from fvl_lightning.comparison.statistics.multiple_testing import holm
from fvl_lightning.comparison.statistics.summary import summarize
from fvl_lightning.comparison.statistics.tasks import JudgedTasks
from fvl_lightning.comparison.statistics.verdicts import compare_arms
from fvl_lightning.core.errors import DataError
from fvl_lightning.evaluation.metrics.base import KindScores, Reference
from fvl_lightning.evaluation.statistics.resampling import LABEL
from fvl_lightning.evaluation.tasks.result import TaskSample

ARMS = ("concat", "gated", "mean")
TASKS = ("shapes", "words", "charts")
SEEDS = 5
REPEATS = 20


def judged(
    lift: dict[tuple[str, str], float] | None = None, questions: int = 60, **settings: Any
) -> tuple[dict[int, dict[str, ArmResult]], dict[str, Any], JudgedTasks]:
    """Results, answers and tasks of arms whose chance of a right answer is known; two questions per image.

    Args:
        lift: {(arm, task): what its chance is more than 0.5}.
    """
    generator, nothing = np.random.default_rng(0), KindScores(0.0, 0.0)
    results: dict[int, dict[str, ArmResult]] = {seed: {} for seed in range(SEEDS)}
    samples: dict[str, dict[str, dict[int, list[TaskSample]]]] = {task: {arm: {} for arm in ARMS} for task in TASKS}
    entry = {"metric": "accuracy", "primary": "overall", "identity": "same", "questions": questions}
    evaluation = TaskEvaluation(
        tasks={task: TaskEntry(title=task.capitalize(), clusters=questions // 2, **entry) for task in TASKS},
        macro=settings.pop("macro", {}),
        **{"correction": "holm", "pairs": "baseline", **settings},
    )
    for arm in ARMS:
        for seed in range(SEEDS):
            scored = {}
            for task in TASKS:
                chance = 0.5 + (lift or {}).get((arm, task), 0.0)
                right = generator.uniform(size=questions) < chance
                samples[task][arm][seed] = [
                    TaskSample(str(n), "", "", float(one), Reference(("a",)), "ab"[n % 2], f"image {n // 2}")
                    for n, one in enumerate(right)
                ]
                kinds = {"a": float(right[::2].mean()), "b": float(right[1::2].mean())}
                scored[task] = TaskScores("same", KindScores(sum(kinds.values()) / 2, float(right.mean()), kinds))
            results[seed][arm] = ArmResult(
                scores={}, image_zeroed=nothing, image_shuffled=nothing, prior=nothing, image_tokens=16, seconds=1,
                inference_flops=1, training_flops=1, parameters=1, trainable=1, tokens_per_second=1,
                peak_memory_bytes=1, tasks=scored,
                macro=averages_of(evaluation.macro, dict.fromkeys(TASKS, "overall"), scored),
            )  # fmt: skip
    answers: dict[str, Any] = {arm: {seed: [] for seed in range(SEEDS)} for arm in ARMS}
    return results, answers, JudgedTasks(evaluation, samples)


def statistics(metric: str, *made: Any) -> ComparisonStatistics:
    results, answers, tasks = made
    return summarize(metric, "concat", 0.02, results, answers, tasks)


def claims(family: TaskFamily) -> set[tuple[str, str]]:
    """(task, arm) of every contrast that is called better or worse."""
    return {
        (split_task_score(one.score)[0], one.arm) for one in family.contrasts if one.verdict in ("better", "worse")
    }


@pytest.mark.parametrize("correction", ["holm", "benjamini_hochberg"])
def test_a_difference_in_one_task_is_found_there_and_not_elsewhere(correction: Correction) -> None:
    """The primary is another task; docs/comparison.md states these numbers."""
    found = elsewhere = primary = 0
    generator = np.random.default_rng(0)
    for _ in range(REPEATS):
        table = {task: {arm: {} for arm in ARMS} for task in TASKS}
        for task, arm, seed in product(TASKS, ARMS, range(SEEDS)):
            chance = 0.66 if (task, arm) == ("words", "gated") else 0.5
            table[task][arm][seed] = generator.binomial(200, chance) / 200
        verdicts = compare_arms(table["shapes"], "concat", 0.02).contrasts
        named = claims(compare_family({f"tasks/{task}/f1": table[task] for task in TASKS[1:]}, "concat", correction))
        found += ("words", "gated") in named
        elsewhere += bool(named - {("words", "gated")})
        primary += any(contrast.verdict in ("better", "worse") for contrast in verdicts)
    assert found == REPEATS
    assert elsewhere <= binom.ppf(0.999, REPEATS, 0.05)
    assert primary <= binom.ppf(0.999, REPEATS, 0.05)


def test_a_family_without_a_difference_claims_none_more_often_than_stated() -> None:
    """Scores without questions, so that many families take a second."""
    generator = np.random.default_rng(1)
    wrong = 0
    for _ in range(150):
        table = {task: {arm: dict(enumerate(generator.normal(size=SEEDS))) for arm in ARMS} for task in TASKS}
        wrong += bool(claims(compare_family({f"tasks/{task}/overall": of for task, of in table.items()}, "concat")))
    assert 1 <= wrong <= binom.ppf(0.999, 150, 0.05)


def test_p_values_are_adjusted_over_all_scores_and_pairs() -> None:
    generator = np.random.default_rng(2)
    scores = {task: {arm: dict(enumerate(generator.normal(size=SEEDS))) for arm in ARMS} for task in TASKS[1:]}
    corrections: list[tuple[Correction, Any]] = [("holm", holm), ("benjamini_hochberg", false_discovery_control)]
    for correction, adjust in corrections:
        family = compare_family(scores, "concat", correction, all_pairs=True)
        assert family.tests == len(family.contrasts) == 2 * 3, "two tasks, three pairs each"
        p = np.array([contrast.p for contrast in family.contrasts])
        assert [contrast.p_adjusted for contrast in family.contrasts] == pytest.approx(list(adjust(p)))
        assert [(one.arm, one.against) for one in family.contrasts[:3]] == [
            ("gated", "concat"), ("mean", "concat"), ("mean", "gated"),
        ]  # fmt: skip


def test_all_pairs_are_adjusted_together_and_those_to_the_baseline_stay_first() -> None:
    scores = np.random.default_rng(0).normal(size=(4, 5))
    some, everything = contrasts(scores), contrasts(scores, all_pairs=True)
    assert pairs_of(4, 0, all_pairs=True) == [(1, 0), (2, 0), (3, 0), (2, 1), (3, 1), (3, 2)]
    assert pairs_of(3, 1) == [(0, 1), (2, 1)]
    np.testing.assert_array_equal(everything.estimate[:3], some.estimate)
    np.testing.assert_array_equal(everything.p[:3], some.p)
    np.testing.assert_allclose(everything.p_holm, holm(everything.p))
    assert (everything.p_holm[:3] >= some.p_holm).all()
    np.testing.assert_allclose(everything.estimate[5], scores[3].mean() - scores[2].mean())

    table = {arm: dict(enumerate(row)) for arm, row in zip("abcd", scores, strict=True)}
    one, all_pairs = compare_arms(table, "a", 0.02), compare_arms(table, "a", 0.02, all_pairs=True)
    assert (one.pairs, len(all_pairs.pairs)) == ((), 3)
    assert [(pair.arm, pair.against) for pair in all_pairs.pairs] == [("c", "b"), ("d", "b"), ("d", "c")]
    assert "against" not in all_pairs.contrasts[0].plain()
    assert "pairs" not in one.plain()
    assert one.sensitivity is not None
    assert all_pairs.sensitivity is not None
    assert all_pairs.sensitivity.detectable > one.sensitivity.detectable, "more tests, each at a smaller level"


def test_the_direction_is_that_of_the_metric() -> None:
    table = {"a": {0: 0.1, 1: 0.12, 2: 0.11, 3: 0.1, 4: 0.13}, "b": {0: 0.31, 1: 0.3, 2: 0.33, 3: 0.32, 4: 0.3}}
    for higher, verdict in ((True, "better"), (False, "worse")):
        (contrast,) = compare_family({"tasks/x/mse": table}, "a", higher_is_better={"tasks/x/mse": higher}).contrasts
        assert contrast.verdict == verdict
        assert contrast.estimate > 0


def test_a_score_that_cannot_be_tested_has_its_reason_and_counts_in_no_adjustment() -> None:
    full = {"a": dict(enumerate([0.1, 0.2, 0.3, 0.2, 0.1])), "b": dict(enumerate([0.5, 0.6, 0.8, 0.6, 0.5]))}
    short = {arm: {seed: score for seed, score in cells.items() if seed < 2} for arm, cells in full.items()}
    family = compare_family({"tasks/x/f1": full, "tasks/y/f1": short}, "a")
    tested, untested = family.contrasts
    assert family.tests == 1
    assert tested.p == tested.p_adjusted
    assert (untested.verdict, isnan(untested.p_adjusted)) == ("not testable", True)
    assert untested.reason == "2 arms need at least 5 seeds in common and have 2"
    assert untested.estimate == pytest.approx(0.4)


def test_questions_are_drawn_with_their_cluster() -> None:
    results, answers, tasks = judged({("gated", "words"): 0.2})
    found = statistics("tasks/words/overall", results, answers, tasks).tasks
    assert found is not None
    assert found.questions.label == LABEL == "these trained models, new questions"
    words = found.questions.scores["tasks/words/overall"]["gated"]
    assert words.interval[0] > 0
    assert words.estimate == pytest.approx(0.2, abs=0.1)
    assert words.interval[0] < words.estimate < words.interval[1]
    for by_seed in tasks.samples["words"].values():  # each image asked four times: no new information
        for seed, rows in by_seed.items():
            by_seed[seed] = [row for row in rows for _ in range(4)]  # type: ignore[index]
    again = statistics("tasks/words/overall", results, answers, tasks).tasks
    assert again is not None
    assert again.questions.scores["tasks/words/overall"]["gated"].interval == pytest.approx(words.interval, abs=1e-9)


def test_averages_over_tasks_are_scores_of_their_own() -> None:
    made = judged({("gated", "words"): 0.2, ("gated", "charts"): 0.2}, macro={"documents": ["words", "charts"]})
    found = statistics("macro/documents", *made)
    (gated, _) = found.contrasts
    assert gated.verdict == "better"
    assert gated.estimate == pytest.approx(0.2, abs=0.1)
    assert found.tasks is not None
    assert found.tasks.family.scores == tuple(f"tasks/{task}/overall" for task in TASKS)
    interval = found.tasks.questions.scores["macro/documents"]["gated"].interval
    assert 0 < interval[0] < gated.estimate < interval[1]
    kinds = {f"{task.capitalize()}: {kind}" for task in TASKS for kind in "ab"}
    assert {hint.group for hint in found.exploratory.contrasts} == kinds
    assert ComparisonStatistics.read(found.plain()) == found


def test_other_questions_are_found() -> None:
    results, answers, tasks = judged()
    rows = tasks.samples["words"]["mean"]
    rows[3] = rows[3][::-1]  # type: ignore[index]
    with pytest.raises(DataError, match="tasks/words/overall: mean with seed 3 was asked other questions"):
        statistics("tasks/words/overall", results, answers, tasks)


def test_names_of_scores() -> None:
    evaluation = judged(macro={"documents": ["words", "charts"]})[2].evaluation
    assert evaluation.scores() == [*(f"tasks/{task}/overall" for task in TASKS), "macro/documents"]
    assert [is_task_score(name) for name in ("accuracy/macro", "tasks/words/f1", "macro/documents")] == [
        False, True, True,
    ]  # fmt: skip
    assert evaluation.title("tasks/words/macro") == "Words, Accuracy, macro average over kinds"
    assert evaluation.title("macro/documents") == "documents, average of Words, Charts"
    assert evaluation.metric_of_cells("macro/documents") == "tasks/words/overall"
    for one, other in pairwise(evaluation.scores()):
        assert evaluation.short_title(one) != evaluation.short_title(other)
