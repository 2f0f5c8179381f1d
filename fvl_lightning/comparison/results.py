"""Merges the results of a comparison's cells, once it is clear that they were compared fairly."""

import os
import platform
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fvl_lightning.comparison.cell import Cell
from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.comparison.fairness import check_same_encoder, check_same_samples, check_same_start
from fvl_lightning.comparison.plan import Arms, SeedPlan, arm_differences
from fvl_lightning.comparison.report.answer_sheet import SampleAnswers
from fvl_lightning.comparison.report.figures import Curve, Losses
from fvl_lightning.comparison.result_files.cell import AnswerRow, ArmResult, CellResult
from fvl_lightning.comparison.result_files.comparison import (
    Comparison,
    EncoderEntry,
    MlflowEntry,
    PublishedScores,
    SeedResult,
)
from fvl_lightning.comparison.result_files.tasks import TaskEvaluation, averages_of
from fvl_lightning.comparison.scoring.task_answers import cell_samples
from fvl_lightning.comparison.statistics.summary import averaged, summarize
from fvl_lightning.comparison.statistics.tasks import JudgedTasks
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.experiment import TrackingConfig
from fvl_lightning.core.plugins import plugin_hashes
from fvl_lightning.evaluation.scoring import levels_of
from fvl_lightning.evaluation.tasks.result import TaskSample
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.setup import prepare_data
from fvl_lightning.tracking.links import cells_search

SAMPLES = 12
"""Questions on the sheet of sample answers."""

Results = dict[int, dict[str, CellResult]]
"""{seed: {arm: result}} of the finished cells."""


def collect(
    config: ComparisonConfig,
    plans: Mapping[int, SeedPlan],
    encoders: Mapping[int, RunFolder | None],
    cells: Sequence[Cell],
    parent: str | None,
    evaluation: TaskEvaluation | None = None,
) -> tuple[Comparison, dict[str, list[AnswerRow]]]:
    """Returns the results of a comparison, and {arm: its answers for the sheet of samples}, of one seed if possible.

    Args:
        config: the comparison.
        plans: {seed: its experiments}.
        encoders: {seed: the encoder that the arms share}.
        cells: every arm with every seed; those that are not finished are left out.
        parent: the MLflow run of the comparison; None where nothing is tracked.
        evaluation: the tasks that the cells were scored on; None where there are none.

    Raises:
        DataError: nothing is finished, or the arms of a seed differ in more than they should.
    """
    results = _finished(cells)
    judged = None if evaluation is None else judged_tasks(evaluation, cells, results)
    first_plan = next(iter(plans.values()))
    baseline = config.baseline or next(iter(first_plan.arms))
    differing = arm_differences(first_plan.arms, baseline)
    if config.lineage == "frozen_encoder":
        for seed, by_arm in results.items():
            check_same_encoder(seed, encoders[seed], by_arm)
    reported = _reported(results, baseline, differing)
    answers = {arm: {seed: by[arm].answers for seed, by in results.items() if arm in by} for arm in differing}
    present = [arm for arm in differing if answers[arm]]
    data = first_plan.arms[baseline][-1].data
    comparison = Comparison(
        name=config.name,
        level=data.config.level if levels_of(data.name) else None,
        seed=config.seeds[0],
        seeds=config.seeds,
        lineage=config.lineage,
        precision=config.scoring.precision,
        metric=config.metric,
        mlflow=mlflow_entry(config, first_plan.arms[baseline][-1].tracking, parent, evaluation),
        encoder=_mean_encoder(encoders),
        machine={"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        arms={arm: mean_result([by[arm] for by in reported.values() if arm in by]) for arm in present},
        cells=[SeedResult(arm, seed, reported[seed][arm]) for arm in present for seed in answers[arm]],
        differences=differing,
        statistics=summarize(config.metric, baseline, config.smallest_effect, results, answers, judged),
        questions=dict(Counter(row.kind for row in next(iter(answers[present[0]].values())))),
        sample_seeds=sample_seeds({arm: list(answers[arm]) for arm in present}),
        plugins={name: code for of in first_plan.arms.values() for name, code in plugin_hashes(of[-1].plugins).items()},
        evaluation=evaluation,
        reference=PublishedScores(config.reference.source, config.reference.scores) if config.reference else None,
    )
    return comparison, {arm: answers[arm][seed] for arm, seed in comparison.sample_seeds.items()}


def _mean_encoder(encoders: Mapping[int, RunFolder | None]) -> EncoderEntry | None:
    """Returns the mean over seeds of the entries of the shared encoders; None where there are none."""
    mean = averaged([encoder_entry(run).plain() for run in encoders.values() if run is not None])
    return None if mean is None else EncoderEntry.read(mean)


def _reported(
    results: Results, baseline: str, differing: Mapping[str, Mapping[str, Any]]
) -> dict[int, dict[str, ArmResult]]:
    """Returns the part of the results that a report shows, once it is clear that the arms trained and started alike."""
    reported: dict[int, dict[str, ArmResult]] = {}
    for seed, by_arm in results.items():
        for stage in next(iter(by_arm.values())).runs:
            check_same_samples(stage, {arm: RunFolder(Path(result.runs[stage])) for arm, result in by_arm.items()})
        same_start = check_same_start(seed, baseline, by_arm, differing)
        reported[seed] = {arm: result.for_report(same_start[arm]) for arm, result in by_arm.items()}
    return reported


def sample_seeds(finished: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Returns {arm: the seed whose answers are shown}: the first seed of all arms, or else the first of each arm."""
    shared = [seed for seed in next(iter(finished.values())) if all(seed in seeds for seeds in finished.values())]
    return {arm: (shared or seeds)[0] for arm, seeds in finished.items()}


def _finished(cells: Sequence[Cell]) -> Results:
    """Returns the results of the finished cells; DataError where there are none."""
    results: Results = defaultdict(dict)
    for cell in cells:
        if cell.finished:
            results[cell.seed][cell.arm] = cell.result()
    if not results:
        failed = [f"{cell.name}: {cell.failure}" for cell in cells if cell.failure is not None]
        raise DataError(f"no cell is finished{'; ' if failed else ''}{'; '.join(failed)}")
    return results


def judged_tasks(evaluation: TaskEvaluation, cells: Sequence[Cell], results: Results) -> JudgedTasks:
    """Returns the tasks with the answers of the finished cells, whose averages over tasks are those named now.

    Raises:
        DataError: a cell was asked other questions, or its answers cannot be read.
    """
    primary = {name: task.primary for name, task in evaluation.tasks.items()}
    samples: dict[str, dict[str, dict[int, list[TaskSample]]]] = {name: {} for name in evaluation.tasks}
    for cell in cells:
        if (result := results.get(cell.seed, {}).get(cell.arm)) is None:
            continue
        for name, task in evaluation.tasks.items():
            if result.tasks[name].identity != task.identity:
                raise DataError(f"{cell.name} was asked other questions of task {name} than the comparison names")
            samples[name].setdefault(cell.arm, {})[cell.seed] = cell_samples(cell.folder, name, task.metric)
        result.macro = averages_of(evaluation.macro, primary, result.tasks)
    return JudgedTasks(evaluation, samples)


def mean_result(seeds: Sequence[ArmResult]) -> ArmResult:
    """Returns the results of an arm averaged over its seeds; texts are those of the first seed."""
    return ArmResult.read(averaged([result.plain() for result in seeds]))


def mlflow_entry(
    config: ComparisonConfig, tracking: TrackingConfig, parent: str | None, evaluation: TaskEvaluation | None = None
) -> MlflowEntry:
    """Returns where the runs of a comparison are tracked."""
    metric = config.metric if evaluation is None else evaluation.metric_of_cells(config.metric)
    search = cells_search(parent or "", metric)
    return MlflowEntry(parent, tracking.experiment, str(Path(config.output) / config.name), search)


def encoder_entry(run: RunFolder) -> EncoderEntry:
    """Returns what a report shows of a shared encoder."""
    info = run.info
    return EncoderEntry(str(run.path), info["encoder_hash"], info["scores"], info["seconds"])


def sample_answers(arms: Arms, answers: Mapping[str, Sequence[AnswerRow]]) -> list[SampleAnswers]:
    """Chooses questions spread over the kinds, each with its image and every arm's answer.

    Args:
        arms: the stages of every arm.
        answers: {arm: its answers}, in one order for all arms.
    """
    store = prepare_data(next(iter(arms.values()))[-1]).store("test")
    first = next(iter(answers.values()))
    kinds = sorted({answer.kind for answer in first})
    chosen: list[int] = []
    while len(chosen) < min(SAMPLES, len(first)):
        # One kind after the other, each time a question on an image that is not on the sheet yet.
        kind, used = kinds[len(chosen) % len(kinds)], {first[number].index for number in chosen}
        fitting = [n for n, answer in enumerate(first) if answer.kind == kind and answer.index not in used]
        chosen.append(fitting[0] if fitting else next(n for n in range(len(first)) if n not in chosen))
    return [
        {
            "image": store.images(first[number].index)[0],
            "question": first[number].question,
            "truth": first[number].truth,
            "answers": {arm: rows[number].answer for arm, rows in answers.items()},
        }
        for number in chosen
    ]


def loss_curves(cells: Sequence[Cell]) -> dict[str, dict[str, Losses]]:
    """Returns {arm: {stage: the losses of its finished seeds}}."""
    runs: dict[str, dict[str, list[RunFolder]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        if cell.finished:
            for stage, path in cell.result().runs.items():
                runs[cell.arm][stage].append(RunFolder(Path(path)))
    return {
        arm: {
            stage: Losses([run.curve("train/loss") for run in seeds], [run.curve("validation/loss") for run in seeds])
            for stage, seeds in by_stage.items()
        }
        for arm, by_stage in runs.items()
    }


def source_weights(cells: Sequence[Cell]) -> dict[str, dict[str, list[Curve]]]:
    """Returns {arm: {source: the curve of its weight in the last stage with each seed}}, of fusions that report it."""
    curves: dict[str, dict[str, list[Curve]]] = {}
    for cell in cells:
        if cell.finished:
            for source, curve in RunFolder(Path(list(cell.result().runs.values())[-1])).source_weights().items():
                curves.setdefault(cell.arm, {}).setdefault(source, []).append(curve)
    return curves
