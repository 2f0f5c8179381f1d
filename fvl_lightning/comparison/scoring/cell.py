"""Scores the last run of a cell, and adds scores, answers and costs to its result and to its MLflow run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from math import isfinite, nan
from pathlib import Path
from typing import Any

from datamodules.base import BatchData
from fvl_lightning.comparison.result_files.cell import AnswerRow, CellResult, CellSpec, Measurements, TrialResult
from fvl_lightning.comparison.scoring.task_answers import (
    measured_tasks,
    open_cell_tasks,
    prompt_tokens,
    sample_rows,
    score_on_tasks,
    task_numbers,
)
from fvl_lightning.core.config.loading import check_config
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.weight_files import weights_hash
from fvl_lightning.evaluation.answers import Answer, Scoring
from fvl_lightning.evaluation.cost import count_cost
from fvl_lightning.evaluation.kept_answers import KeptAnswers
from fvl_lightning.evaluation.metrics.base import KindScores
from fvl_lightning.evaluation.scoring import (
    ControlScores,
    connected_data,
    experiment_at_level,
    open_model,
    score,
    score_controls,
)
from fvl_lightning.evaluation.tasks.result import TaskResult
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.references import model_hash
from fvl_lightning.runs.setup import build_stage
from fvl_lightning.runs.tracking import track_results
from fvl_lightning.training.distributed.process_group import Ranks


def open_scoring(run: RunFolder, spec: CellSpec, folder: Path, ranks: Ranks) -> Scoring:
    """Opens the model of a run for scoring by a cell's settings, on its training device; all ranks must call it."""
    built, data = ranks.rank0_first(lambda: open_model(run))
    kept = KeptAnswers(folder, model_hash(built), ranks.rank)
    return Scoring(built, data, spec.split, spec.metric, precision=spec.precision, ranks=ranks, kept=kept)


def score_trial(run: RunFolder, spec: CellSpec, key: str, folder: Path, ranks: Ranks) -> TrialResult | None:
    """Scores a run on the split that learning rates are chosen by; see score_cell."""
    scores, _ = score(open_scoring(run, spec, folder, ranks))
    return ranks.on_rank0(lambda: tracked_trial(run, spec, key, scores))


def tracked_trial(run: RunFolder, spec: CellSpec, key: str, scores: KindScores) -> TrialResult:
    """Returns the result of a trial, and adds it to the run in MLflow."""
    result = TrialResult({spec.metric: scores}, key)
    if run.tracking.is_file():
        measured = {name: value for name, value in result.plain().items() if name != "cell"}
        track_results(run, dict(numbers(measured, f"{spec.split}/")), {})
    return result


def score_cell(
    runs: list[RunFolder], spec: CellSpec, key: str, folder: Path, ranks: Ranks
) -> CellResult | None:
    """Scores the run of the last stage on the test split and on tasks; adds scores and answers to its MLflow run.

    All ranks must call it; they share the questions. Returns the result on rank 0, and None on the others.
    """
    scoring = open_scoring(runs[-1], spec, folder, ranks)
    tasks = open_cell_tasks(spec, ranks)
    scored = score_test(runs[-1], spec, scoring) if spec.test_questions else unscored()
    scored = replace(scored, on_tasks=score_on_tasks(scoring, tasks, folder), prompt=prompt_tokens(scoring, tasks))
    return ranks.on_rank0(lambda: tracked_cell(runs, spec, key, scoring, scored))


@dataclass(frozen=True)
class Scored:
    """Scores and answers of the model of a cell."""

    scores: dict[str, Any]
    """Fields of Measurements: those of the test split."""
    answers: Sequence[Answer] = ()
    on_tasks: Sequence[TaskResult] = ()
    prompt: int | None = None
    """Text tokens of a task's prompt; None without tasks."""


def unscored() -> Scored:
    """Returns empty scores, and NaN for the controls, of a model whose data has no questions."""
    return Scored({"scores": {}} | {part.name: KindScores(nan, nan) for part in fields(ControlScores)})


def score_test(run: RunFolder, spec: CellSpec, scoring: Scoring) -> Scored:
    """Returns the scores of a run on the test split, its controls, and those on further splits and levels."""
    ranks = scoring.ranks

    def at(level: str) -> Scoring:
        experiment = experiment_at_level(run.experiment(), level)
        return replace(scoring, data=ranks.rank0_first(partial(connected_data, experiment, scoring.built)))

    scores, answers = score(scoring)
    scored = {
        "scores": {spec.metric: scores},
        **vars(score_controls(scoring)),
        "unseen": {split: score(replace(scoring, split=split))[0] for split in spec.unseen_splits},
        "transfer": {level: score(at(level))[0] for level in spec.transfer_levels},
    }
    return Scored(scored, answers)


def tracked_cell(
    runs: list[RunFolder], spec: CellSpec, key: str, scoring: Scoring, scored: Scored
) -> CellResult:
    """Returns the result of a cell, with its costs, and adds it to the MLflow run of the last stage."""
    last, data = runs[-1], scoring.data
    info = last.info
    measured: dict[str, Any] = {
        **scored.scores,
        **count_cost(last, scoring.built, as_written(data, spec), None if spec.test_questions else scored.prompt),
        "parameters": info["parameters"],
        "trainable": info["trainable"],
        "tokens_per_second": info["tokens_per_second"],
        "peak_memory_bytes": max(run.info["peak_memory_bytes"] for run in runs),
        "seconds": sum(run.info["seconds"] for run in runs),
        "mass": {name: curve[-1][1] for name, curve in last.source_weights().items()},
    }
    rows = [answer_row(answer) for answer in scored.answers]
    on_tasks = measured_tasks(spec, scored.on_tasks)
    if last.tracking.is_file():
        results = dict(numbers(Measurements(**measured).plain())) | task_numbers(on_tasks)
        tables = {"answers": [row.plain() for row in rows]} if spec.test_questions else {}
        tables |= {f"answers_{result.task}": sample_rows(result.samples) for result in scored.on_tasks}
        track_results(last, results, tables, data if spec.test_questions else None, spec.metric)
    return CellResult(
        **measured,
        **on_tasks,
        cell=key,
        encoder_hash=info["encoder_hash"],
        initial=initial_weights(spec.stages[-1]),
        runs={run.info["stage"]: str(run.path) for run in runs},
        answers=rows,
        precision=spec.precision,
    )


def as_written(data: BatchData, spec: CellSpec) -> BatchData:
    """Sets the batch size of the data to that of the last stage's file, independent of the cell's devices.

    The cost of a sample depends on the padding of its batch.
    """
    data.connect(replace(data.context, batch_size=spec.stages[-1]["trainer"]["batch_size"]))
    return data


def answer_row(answer: Answer) -> AnswerRow:
    """Returns the row of an answer in the result, with the text of its question but without images."""
    question = answer.question
    content = question.prompt_messages[-1]["content"]
    text = content if isinstance(content, str) else " ".join(p["text"] for p in content if p["type"] == "text")
    return AnswerRow(index=question.index, kind=question.kind, question=text, truth=question.answer, answer=answer.text)


def numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yields (name, value) of every finite number, such as accuracy/macro, accuracy/colour and transfer/medium/macro.

    Args:
        values: nested numbers by name; the level `by_kind` is left out of names.
        prefix: first part of every name.
    """
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from numbers(value, prefix if key == "by_kind" else f"{prefix}{key}/")
        elif value is not None and isfinite(value):
            yield f"{prefix}{key.replace(' ', '_')}", float(value)


def initial_weights(plain: dict[str, Any]) -> dict[str, tuple[list[int], str]]:
    """Returns {parameter: (shape, hash of its initial values)} of a plain experiment, before any run is loaded."""
    model = build_stage(check_config(ExperimentConfig, plain)).model
    return {
        name: (list(parameter.shape), weights_hash({"": parameter})) for name, parameter in model.named_parameters()
    }
