"""Trains the stages of one cell in a process of its own, one after the other, and scores the last one.

`python -m fvl_lightning.comparison.worker CELL.json` writes result.json into the folder of the specification.
"""

from fvl_lightning.training.fault_tolerance.signals import handle_from_start

if __name__ == "__main__":
    handle_from_start(preemptible=True)

import sys
from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from fvl_lightning.comparison.cell import LOCK, is_finished
from fvl_lightning.comparison.result_files.cell import AnswerRow, CellResult, CellSpec, Measurements, TrialResult
from fvl_lightning.comparison.split_readings import log_test_access
from fvl_lightning.core.config.loading import check_config
from fvl_lightning.core.errors import (
    EXIT_INTERRUPTED,
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
from fvl_lightning.evaluation.answers import Answer
from fvl_lightning.evaluation.cost import count_cost
from fvl_lightning.evaluation.scoring import open_model, score, score_controls, score_run
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.run import reuse_or_train, run_training
from fvl_lightning.runs.setup import build_stage
from fvl_lightning.runs.tracking import track_results
from fvl_lightning.training.fault_tolerance.process_exit import begin_exit
from fvl_lightning.training.fault_tolerance.signals import Preempted, StopSignals, preemptible

LOCK_SECONDS = 2.0
"""Time to wait for the lock of a cell: a process that looks whether it is held has it for an instant."""


def main(specification: Path) -> int:
    """Runs the cell. Returns 0, or 2 after a message on standard error, 130 after Ctrl-C, or 75 after SIGTERM.

    Another process that runs the cell at this moment is left alone, with exit code 75.
    """
    quiet_libraries()
    folder = specification.parent
    try:
        with preemptible(), held(folder / LOCK, f"{folder} is being run by another process", LOCK_SECONDS):
            try:
                values = read_sealed(specification)
            except (OSError, ValueError) as error:
                raise DataError(f"{specification} cannot be read: {first_line(error)}") from None
            if not isinstance(key := values.get("cell"), str):
                raise DataError(f"{specification} is no specification of a cell, it lacks 'cell'")
            if not values.get("fresh") and is_finished(folder, key):
                return 0
            result = run_cell(CellSpec.read(values), key, folder)
            write_sealed(folder / "result.json", result.plain())
    except HeldError as error:
        sys.stderr.write(f"{error}\n")
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


def run_cell(spec: CellSpec, key: str, folder: Path) -> CellResult | TrialResult:
    """Trains the stages of `spec` and scores the last one; scoring on the test split is logged in `folder`.

    Args:
        spec: what to train and score.
        key: names everything that makes the result.
        folder: the cell's folder.

    Raises:
        ConfigError: a stage was trained with another encoder than the one that the arms share.
    """
    runs: list[RunFolder] = []
    for stage in spec.stages:
        previous = str(runs[-1].path) if runs else spec.encoder_run
        started = stage if previous is None else {**stage, "init_from": [previous]}
        experiment = check_config(ExperimentConfig, started)
        train = run_training if spec.fresh else reuse_or_train
        run = train(experiment, parent_run_id=spec.parent_run_id, tags=spec.tags)
        StopSignals.late.raise_for()
        own = run.info["encoder_hash"]
        if spec.encoder_hash not in (None, own):
            raise ConfigError(
                f"{run.path}: its encoder is not the one all arms share ({own}, not {spec.encoder_hash}); the "
                "comparison would be unfair"
            )
        runs.append(run)
    if spec.split != "test":
        return score_trial(runs[-1], spec, key)
    log_test_access(folder, key)
    return score_cell(runs, spec, key)


def score_trial(run: RunFolder, spec: CellSpec, key: str) -> TrialResult:
    """Scores a run on a split that no report shows, to choose learning rates by."""
    scores, _ = score_run(run, spec.split, metric=spec.metric)
    result = TrialResult({spec.metric: scores}, key)
    if run.tracking.is_file():
        measured = {name: value for name, value in result.plain().items() if name != "cell"}
        track_results(run, dict(numbers(measured, f"{spec.split}/")), {})
    return result


def score_cell(runs: list[RunFolder], spec: CellSpec, key: str) -> CellResult:
    """Scores the run of the last stage on the test split, and adds scores and answers to its MLflow run."""
    last = runs[-1]
    built, data = open_model(last)
    scores, answers = score(built, data, "test", metric=spec.metric)
    info = last.info
    measured: dict[str, Any] = {
        "scores": {spec.metric: scores},
        **vars(score_controls(built, data, "test", metric=spec.metric)),
        "unseen": {split: score(built, data, split, metric=spec.metric)[0] for split in spec.unseen_splits},
        "transfer": {level: score_run(last, level=level, metric=spec.metric)[0] for level in spec.transfer_levels},
        **count_cost(last, built, data),
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
    )


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
