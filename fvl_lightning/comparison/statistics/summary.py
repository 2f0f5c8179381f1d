"""Summary of a comparison's scores: verdicts over seeds, hints by kind of question, intervals over images."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fvl_lightning.comparison.result_files.cell import AnswerRow, Measurements
from fvl_lightning.comparison.result_files.statistics import (
    ComparisonStatistics,
    Exploratory,
    ImageInterval,
    ImageIntervals,
)
from fvl_lightning.comparison.scoring.names import is_task_score, score_of_split
from fvl_lightning.comparison.statistics.complete_cases import ArmScores
from fvl_lightning.comparison.statistics.image_bootstrap import LABEL, image_intervals
from fvl_lightning.comparison.statistics.tasks import JudgedTasks, ScoreOf, task_kinds, task_statistics
from fvl_lightning.comparison.statistics.verdicts import EXPLORATORY, compare_arms, explore
from fvl_lightning.core.errors import DataError
from fvl_lightning.evaluation.metrics.averages import OVER_KINDS
from fvl_lightning.evaluation.metrics.base import Reference
from fvl_lightning.evaluation.metrics.lookup import build_metric, metric_of, split_score

Results = Mapping[int, Mapping[str, Measurements]]
"""{seed: {arm: what was measured}}."""
Answers = Mapping[str, Mapping[int, Sequence[AnswerRow]]]
"""{arm: {seed: its answers}}, in one order everywhere; an arm without results has no seeds."""


def summarize(
    metric: str,
    baseline: str,
    smallest_effect: float,
    results: Results,
    answers: Answers,
    tasks: JudgedTasks | None = None,
) -> ComparisonStatistics:
    """Returns the statistics of a comparison.

    Args:
        metric: the score that arms are compared by, such as accuracy/macro or tasks/pope/f1.
        baseline: the arm that the others are compared to.
        smallest_effect: see verdicts.compare_arms.
        results: the measurements of the finished cells.
        answers: the answers of the same cells, with all arms, even those without any.
        tasks: the tasks that the cells were scored on; None where there are none.

    Raises:
        DataError: two cells answered different questions.
    """
    on_task = tasks is not None and is_task_score(metric)
    judged = tasks.evaluation.metric(metric) if tasks is not None and on_task else metric_of(metric)
    scores = _scores(results, answers, lambda result: result.score(metric))
    all_pairs = tasks is not None and tasks.evaluation.pairs == "all"
    compared = compare_arms(
        scores, baseline, smallest_effect, higher_is_better=judged.higher_is_better, all_pairs=all_pairs
    )
    first = next(iter(next(iter(results.values())).values()))
    readers = _groups(score_of_split(metric), first)
    readers |= task_kinds(tasks.evaluation, first) if tasks is not None else {}
    groups = {name: _scores(results, answers, score_of) for name, score_of in readers.items()}
    seeds = compared.tested_seeds or answers[baseline]
    images = {} if on_task else _image_intervals(answers, baseline, metric, seeds)
    on_tasks = None
    if tasks is not None:

        def scores_of(score_of: ScoreOf) -> ArmScores:
            return _scores(results, answers, score_of)

        on_tasks = task_statistics(metric, baseline, tasks, scores_of, seeds)
    return ComparisonStatistics(
        **vars(compared),
        exploratory=Exploratory(EXPLORATORY, explore(groups, baseline)),
        images=ImageIntervals(LABEL, images),
        tasks=on_tasks,
    )


def averaged(entries: Sequence[Any]) -> Any:
    """Returns entries of one form as one: numbers as their mean, everything else as in the first; None for none."""
    if not entries:
        return None
    first = entries[0]
    if isinstance(first, Mapping):
        return {key: averaged([entry[key] for entry in entries if key in entry]) for key in first}
    if isinstance(first, int | float) and any(entry != first for entry in entries):
        return sum(entries) / len(entries)
    return first


def _scores(results: Results, answers: Answers, score_of: ScoreOf) -> dict[str, dict[int, float]]:
    """Returns {arm: {seed: a number of its result}}."""
    return {arm: {seed: float(score_of(results[seed][arm])) for seed in by_seed} for arm, by_seed in answers.items()}


def _groups(metric: str, first: Measurements) -> dict[str, ScoreOf]:
    """Returns {kind of question, further split or further level: its score in a result}; `first` is one of them."""
    name, _ = split_score(metric)
    primary = next(iter(metric_of(metric).averages))
    groups = {kind: _kind_score(name, kind) for kind in first.scores[name].by_kind} if first.scores else {}
    groups |= {split: _unseen_score(split, primary) for split in first.unseen}
    return groups | {level: _transfer_score(level, primary) for level in first.transfer}


def _kind_score(metric: str, kind: str) -> ScoreOf:
    return lambda result: result.scores[metric].by_kind[kind]


def _unseen_score(split: str, average: str) -> ScoreOf:
    return lambda result: result.unseen[split].average(average)


def _transfer_score(level: str, average: str) -> ScoreOf:
    return lambda result: result.transfer[level].average(average)


def _image_intervals(
    answers: Answers, baseline: str, metric: str, seeds: Iterable[int]
) -> dict[str, ImageInterval]:
    """Returns the intervals of the arms that were trained with all of `seeds`; none without a baseline."""
    seeds = set(seeds)
    shared = {arm: by_seed for arm, by_seed in answers.items() if seeds and set(by_seed) >= seeds}
    if len(shared) < 2:
        return {}
    asked = next(iter(shared[baseline].values()))
    order = [(row.index, row.kind, row.truth) for row in asked]
    name, average = split_score(metric)
    scorer = build_metric(name)
    scorer.prepare([Reference((row.truth,)) for row in asked])
    scores: dict[str, list[list[float]]] = {}
    for arm, by_seed in shared.items():
        scores[arm] = []
        for seed in sorted(seeds):
            rows = by_seed[seed]
            if [(row.index, row.kind, row.truth) for row in rows] != order:
                raise DataError(f"arm {arm} with seed {seed} was asked other questions than {baseline}")
            scores[arm].append([scorer.score_answer(row.answer, Reference((row.truth,))) for row in rows])
    kinds = [row.kind for row in asked] if average == OVER_KINDS else None
    return image_intervals(scores, [row.index for row in asked], baseline, kinds)
