"""Statistics of scores on tasks: the family beside a comparison's primary score, and intervals over new questions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fvl_lightning.comparison.result_files.cell import Measurements
from fvl_lightning.comparison.result_files.statistics import (
    ImageInterval,
    QuestionIntervals,
    SliceGroup,
    TaskSlices,
    TaskStatistics,
    WorstGap,
)
from fvl_lightning.comparison.result_files.tasks import TaskEvaluation
from fvl_lightning.comparison.scoring.names import is_average, is_task_score, split_task_score, task_score
from fvl_lightning.comparison.statistics.complete_cases import ArmScores
from fvl_lightning.comparison.statistics.families import Correction, compare_family, family_arms
from fvl_lightning.core.errors import DataError
from fvl_lightning.evaluation.robustness.slices import SliceScores, averaged_slice_scores
from fvl_lightning.evaluation.statistics.aggregates import clusters_of, number_draws
from fvl_lightning.evaluation.statistics.resampling import LABEL, Array, Resamples, estimate
from fvl_lightning.evaluation.tasks.result import TaskSample

Samples = Mapping[str, Mapping[int, Sequence[TaskSample]]]
"""{arm: {seed: its answers to the questions of a task}}, in one order everywhere."""


@dataclass(frozen=True)
class JudgedTasks:
    """The tasks of a comparison, with the answers of its finished cells."""

    evaluation: TaskEvaluation
    samples: Mapping[str, Samples]
    """{task: its samples}."""


ScoreOf = Callable[[Measurements], float]
"""Reads a number of a result."""
ScoresOf = Callable[[ScoreOf], ArmScores]
"""Returns {arm: {seed: a number of its result}}."""


def task_statistics(
    primary: str, baseline: str, tasks: JudgedTasks, scores_of: ScoresOf, tested_seeds: Iterable[int]
) -> TaskStatistics:
    """Returns the statistics of all scores of the tasks.

    Args:
        primary: the score that is tested by itself, and is no part of the family.
        baseline: the arm that the others are compared to.
        tasks: tasks and answers.
        scores_of: reads a number of every cell.
        tested_seeds: the seeds that the intervals over questions average over.

    Raises:
        DataError: two cells answered other questions of a task.
    """
    evaluation = tasks.evaluation
    names = evaluation.scores()
    shown = names if primary in names or not is_task_score(primary) else [primary, *names]
    by_score = {name: scores_of(_reader(name)) for name in shown}
    family = {name: scores for name, scores in by_score.items() if name != primary}
    directions = {name: evaluation.metric(name).higher_is_better for name in family}
    tested = set(tested_seeds)
    correction: Correction = "holm" if evaluation.correction == "holm" else "benjamini_hochberg"
    return TaskStatistics(
        arms={name: family_arms(scores) for name, scores in by_score.items()},
        family=compare_family(family, baseline, correction, evaluation.pairs == "all", directions),
        questions=question_intervals(list(by_score), baseline, tasks, tested),
        slices=tuple(one for name in evaluation.tasks for one in _slices(name, tasks, tested)),
    )


def task_kinds(evaluation: TaskEvaluation, first: Measurements) -> dict[str, ScoreOf]:
    """Returns {kind of question of a task: its score in a result}, of the tasks that have several kinds."""
    groups: dict[str, ScoreOf] = {}
    for name, task in evaluation.tasks.items():
        kinds = first.tasks[name].scores.by_kind
        if len(kinds) > 1:
            groups |= {f"{task.title}: {kind}": _kind_reader(name, kind) for kind in kinds}
    return groups


def question_intervals(
    scores: Sequence[str], baseline: str, tasks: JudgedTasks, seeds: set[int]
) -> QuestionIntervals:
    """Returns the intervals of scores over new questions, which are drawn in their clusters.

    Args:
        scores: names of scores.
        baseline: the arm that the others are compared to.
        tasks: tasks and answers.
        seeds: the seeds that are averaged over; arms that lack one are left out.

    Raises:
        DataError: two cells answered other questions of a task.
    """
    found: dict[str, dict[str, ImageInterval]] = {}
    for score in scores:
        name, number = split_task_score(score)
        members = tasks.evaluation.macro[name] if is_average(score) else [name]
        # The questions of several tasks are drawn independently, each task with a seed of its own.
        parts = [
            _draws(task, number or tasks.evaluation.tasks[task].primary, tasks, seeds, place)
            for place, task in enumerate(members)
        ]
        rows = min(len(draws) for part in parts for draws in part.values()) if all(parts) else 0
        arms = [arm for arm in parts[0] if rows and all(arm in part for part in parts)]
        if baseline not in arms:
            continue
        draws = {arm: np.mean([part[arm][:rows] for part in parts], axis=0) for arm in arms}
        clusters = min(tasks.evaluation.tasks[task].clusters for task in members)
        intervals = {
            arm: estimate(draws[arm] - draws[baseline], clusters) for arm in arms if arm != baseline
        }
        found[score] = {arm: ImageInterval(one.value, one.interval) for arm, one in intervals.items()}
    return QuestionIntervals(LABEL, {score: arms for score, arms in found.items() if arms})


def _slices(task: str, tasks: JudgedTasks, seeds: set[int]) -> list[TaskSlices]:
    """Returns the arms on a task by each field that it names as a slice; those that lack a seed are left out."""
    models = {
        arm: [by_seed[seed] for seed in sorted(seeds)]
        for arm, by_seed in tasks.samples.get(task, {}).items()
        if seeds and set(by_seed) >= seeds
    }
    if not models:
        return []
    entry, samples = tasks.evaluation.tasks[task], next(iter(models.values()))[0]
    by_field: dict[str, list[SliceScores]] = {}
    for found in averaged_slice_scores(models, entry.build({sample.kind for sample in samples}), entry.primary):
        by_field.setdefault(found.field, []).append(found)
    return [
        TaskSlices(
            task=task,
            by=field,
            groups=tuple(
                SliceGroup(
                    group.value,
                    group.questions,
                    group.clusters,
                    {found.model: found.groups[place].score.value for found in by_arm},
                )
                for place, group in enumerate(by_arm[0].groups)
            ),
            worst={
                found.model: WorstGap(found.worst, found.worst_gap.value, found.worst_gap.interval)
                for found in by_arm
            },
            warnings=by_arm[0].warnings,
        )
        for field, by_arm in by_field.items()
    ]


def _draws(task: str, number: str, tasks: JudgedTasks, seeds: set[int], draw: int) -> dict[str, Array]:
    """Returns {arm: a number of a task `[1 + R]`, averaged over `seeds`}, on the questions and on each draw of them."""
    samples = tasks.samples.get(task, {})
    arms = [arm for arm, by_seed in samples.items() if seeds and set(by_seed) >= seeds]
    if not arms:
        return {}
    models = [samples[arm][seed] for arm in arms for seed in sorted(seeds)]
    order = [(sample.id, sample.kind, sample.cluster) for sample in models[0]]
    for place, rows in enumerate(models):
        if [(row.id, row.kind, row.cluster) for row in rows] != order:
            arm, seed = arms[place // len(seeds)], sorted(seeds)[place % len(seeds)]
            name = task_score(task, number)
            raise DataError(f"{name}: {arm} with seed {seed} was asked other questions than {arms[0]}")
    metric = tasks.evaluation.tasks[task].build({sample.kind for sample in models[0]})
    draws = number_draws(models, metric, number, Resamples(clusters_of(models[0]), seed=draw))
    by_arm = draws.reshape(len(draws), len(arms), len(seeds)).mean(-1)
    return {arm: by_arm[:, place] for place, arm in enumerate(arms)}


def _reader(score: str) -> ScoreOf:
    return lambda result: result.score(score)


def _kind_reader(task: str, kind: str) -> ScoreOf:
    return lambda result: result.tasks[task].scores.by_kind[kind]
