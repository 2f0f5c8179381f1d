"""Trains the stages of one cell in a process of its own, one after the other, and scores the last one.

`python -m fvl_lightning.comparison.worker CELL.json` writes result.json into the folder of the specification.
"""

from fvl_lightning.training.fault_tolerance.signals import handle_from_start

if __name__ == "__main__":
    handle_from_start(preemptible=True)

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

from datamodules.base import BatchData
from fvl_lightning.comparison.cell import LOCK, is_finished
from fvl_lightning.comparison.result_files.cell import AnswerRow, CellResult, CellSpec, Measurements, TrialResult
from fvl_lightning.comparison.split_readings import log_test_access
from fvl_lightning.core.config.loading import check_config
from fvl_lightning.core.errors import (
    EXIT_INTERRUPTED,
    EXIT_PEER_FAILED,
    EXIT_REQUEUE,
    EXIT_USAGE_ERROR,
    ConfigError,
    DataError,
    UserError,
    disk_error,
    first_line,
    os_error_in_words,
)
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.jsonl import read_sealed, write_sealed
from fvl_lightning.core.locks import HeldError, held
from fvl_lightning.core.terminal import quiet_libraries, visible
from fvl_lightning.core.weight_files import weights_hash
from fvl_lightning.evaluation.answers import Answer, Scoring
from fvl_lightning.evaluation.cost import count_cost
from fvl_lightning.evaluation.kept_answers import KeptAnswers, remove_kept
from fvl_lightning.evaluation.metrics.base import KindScores
from fvl_lightning.evaluation.scoring import open_data, open_model, score, score_controls
from fvl_lightning.launchers.placement import placed
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.references import model_hash
from fvl_lightning.runs.run import reuse_or_train, run_training
from fvl_lightning.runs.setup import build_stage
from fvl_lightning.runs.tracking import track_results
from fvl_lightning.training.distributed.process_group import Ranks, init_process_group
from fvl_lightning.training.fault_tolerance.hang_detection import LostRankError, PeerFailedError
from fvl_lightning.training.fault_tolerance.process_exit import begin_exit
from fvl_lightning.training.fault_tolerance.signals import Preempted, StopSignals, preemptible

LOCK_SECONDS = 2.0
"""Time to wait for the lock of a cell: a process that looks whether it is held has it for an instant."""


def main(specification: Path) -> int:
    """Runs the cell, as one of its ranks.

    Returns:
        0; 2 after a message on standard error; 130 after Ctrl-C; 75 after SIGTERM, where another process runs the cell
        at this moment, and where another rank died; or 1 where another rank has failed, which says why.
    """
    quiet_libraries()
    folder = specification.parent
    try:
        with preemptible():
            spec, key = read_specification(specification)
            with ranks_of(spec) as ranks, ExitStack() as stack:
                lock = held(folder / LOCK, f"{folder} is being run by another process", LOCK_SECONDS)
                ranks.broadcast_from_rank0(lambda: stack.enter_context(lock))
                if ranks.broadcast_from_rank0(lambda: not spec.fresh and is_finished(folder, key)):
                    return 0
                if (result := run_cell(spec, key, folder, ranks)) is not None:
                    write_sealed(folder / "result.json", result.plain())
                    remove_kept(folder)
    except HeldError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_REQUEUE
    except PeerFailedError:
        return EXIT_PEER_FAILED
    except LostRankError as error:
        sys.stderr.write(f"{error}\n" if error.is_reporter else "")
        return EXIT_REQUEUE
    except UserError as error:
        sys.stderr.write(f"{visible(str(error))}\n")
        return EXIT_USAGE_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Preempted:
        return EXIT_REQUEUE
    except Exception as error:
        cause = disk_error(error)
        if cause is None:
            raise
        sys.stderr.write(f"{cause.filename or folder} cannot be used: {os_error_in_words(cause)}\n")
        return EXIT_USAGE_ERROR
    return 0


def read_specification(file: Path) -> tuple[CellSpec, str]:
    """Returns what to train and score, and the key that names the result.

    Raises:
        DataError: the file cannot be read, or is no specification.
    """
    try:
        values = read_sealed(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {first_line(error)}") from None
    if not isinstance(key := values.get("cell"), str):
        raise DataError(f"{file} is no specification of a cell, it lacks 'cell'")
    return CellSpec.read(values), key


def ranks_of(spec: CellSpec) -> AbstractContextManager[Ranks]:
    """Joins the process group of the cell, in which it is trained and scored; a single process has none."""
    if spec.resources.world_size == 1:
        return nullcontext(Ranks())
    return init_process_group(placed(check_config(ExperimentConfig, spec.stages[0]), spec.resources).trainer)


def run_cell(spec: CellSpec, key: str, folder: Path, ranks: Ranks | None = None) -> CellResult | TrialResult | None:
    """Trains the stages of `spec` and scores the last one; scoring on the test split is logged in `folder`.

    Args:
        spec: what to train and score.
        key: names everything that makes the result.
        folder: the cell's folder.
        ranks: the process group of the cell, all ranks of which must call this; None for a single process.

    Returns:
        The result on rank 0, which writes and tracks for all; None on the others.

    Raises:
        ConfigError: a stage was trained with another encoder than the one that the arms share.
    """
    ranks = ranks or Ranks()
    runs: list[RunFolder] = []
    for stage in spec.stages:
        previous = str(runs[-1].path) if runs else spec.encoder_run
        started = stage if previous is None else {**stage, "init_from": [previous]}
        experiment = placed(check_config(ExperimentConfig, started), spec.resources)
        if not spec.fresh:
            threads = ranks.broadcast_from_rank0(partial(threads_of_stopped, experiment))
            experiment = replace(experiment, trainer=replace(experiment.trainer, threads=threads))
        train = run_training if spec.fresh else reuse_or_train
        run = train(experiment, parent_run_id=spec.parent_run_id, tags=spec.tags, ranks=ranks)
        StopSignals.late.raise_for()
        own = run.info["encoder_hash"]
        if spec.encoder_hash not in (None, own):
            raise ConfigError(
                f"{run.path}: its encoder is not the one all arms share ({own}, not {spec.encoder_hash}); the "
                "comparison would be unfair"
            )
        runs.append(run)
    if spec.split != "test":
        return score_trial(runs[-1], spec, key, folder, ranks)
    ranks.broadcast_from_rank0(lambda: log_test_access(folder, key))
    return score_cell(runs, spec, key, folder, ranks)


def threads_of_stopped(experiment: ExperimentConfig) -> int | None:
    """Returns the threads of the stopped run that may be resumed, since others give other bits; else the configured."""
    runs = RunFolder.named(Path(experiment.output), experiment.name)
    threads = [run.info["threads"] for run in runs if not run.finished and "threads" in run.info]
    return threads[-1] if threads else experiment.trainer.threads


def open_scoring(run: RunFolder, spec: CellSpec, folder: Path, ranks: Ranks) -> Scoring:
    """Opens the model of a run for scoring as a cell asks, on the device of its training; on every rank."""
    built, data = ranks.rank0_first(lambda: open_model(run))
    kept = KeptAnswers(folder, model_hash(built), ranks.rank)
    return Scoring(built, data, spec.split, spec.metric, precision=spec.precision, ranks=ranks, kept=kept)


def score_trial(run: RunFolder, spec: CellSpec, key: str, folder: Path, ranks: Ranks) -> TrialResult | None:
    """Scores a run on a split that no report shows, to choose learning rates by; see score_cell."""
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
    """Scores the run of the last stage on the test split, and adds scores and answers to its MLflow run.

    All ranks must call it; they share the questions. Returns the result on rank 0, and None on the others.
    """
    scoring = open_scoring(runs[-1], spec, folder, ranks)

    def at(level: str) -> Scoring:
        return replace(scoring, data=ranks.rank0_first(partial(open_data, runs[-1], scoring.built, level)))

    scores, answers = score(scoring)
    scored: dict[str, Any] = {
        "scores": {spec.metric: scores},
        **vars(score_controls(scoring)),
        "unseen": {split: score(replace(scoring, split=split))[0] for split in spec.unseen_splits},
        "transfer": {level: score(at(level))[0] for level in spec.transfer_levels},
    }
    return ranks.on_rank0(lambda: tracked_cell(runs, spec, key, scoring, scored, answers))


def tracked_cell(
    runs: list[RunFolder],
    spec: CellSpec,
    key: str,
    scoring: Scoring,
    scored: Mapping[str, Any],
    answers: Sequence[Answer],
) -> CellResult:
    """Returns the result of a cell, with its costs, and adds it to the MLflow run of the last stage."""
    last, data = runs[-1], scoring.data
    info = last.info
    measured: dict[str, Any] = {
        **scored,
        **count_cost(last, scoring.built, as_written(data, spec)),
        "parameters": info["parameters"],
        "trainable": info["trainable"],
        "tokens_per_second": info["tokens_per_second"],
        "peak_memory_bytes": max(run.info["peak_memory_bytes"] for run in runs),
        "seconds": sum(run.info["seconds"] for run in runs),
        "mass": {name: curve[-1][1] for name, curve in last.source_weights().items()},
    }
    rows = [answer_row(answer) for answer in answers]
    if last.tracking.is_file():
        results = dict(numbers(Measurements(**measured).plain()))
        track_results(last, results, {"answers": [row.plain() for row in rows]}, data, spec.metric)
    return CellResult(
        **measured,
        cell=key,
        encoder_hash=info["encoder_hash"],
        initial=initial_weights(spec.stages[-1]),
        runs={run.info["stage"]: str(run.path) for run in runs},
        answers=rows,
        precision=spec.precision,
    )


def as_written(data: BatchData, spec: CellSpec) -> BatchData:
    """Returns the data with batches of the size that the last stage asks for, whatever the devices of the cell.

    The cost of a sample depends on the padding of its batch.
    """
    data.connect(replace(data.context, batch_size=spec.stages[-1]["trainer"]["batch_size"]))
    return data


def answer_row(answer: Answer) -> AnswerRow:
    """Returns an answer as it is written, with the text of its question but without the question's image part."""
    question = answer.question
    content = question.prompt_messages[-1]["content"]
    text = content if isinstance(content, str) else " ".join(p["text"] for p in content if p["type"] == "text")
    return AnswerRow(index=question.index, kind=question.kind, question=text, truth=question.answer, answer=answer.text)


def numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yields (name, value) of every finite number, such as accuracy/macro, accuracy/colour and transfer/medium/macro.

    Args:
        values: nested numbers by name; what lies under `by_kind` is named without it.
        prefix: begins every name.
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


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    begin_exit(code)
    sys.exit(code)
