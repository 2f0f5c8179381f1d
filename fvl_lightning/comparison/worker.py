"""Trains the stages of one cell in a process of its own, one after the other, and scores the last one.

`python -m fvl_lightning.comparison.worker CELL.json` writes result.json into the folder of the specification.
"""

from fvl_lightning.training.fault_tolerance.signals import handle_from_start

if __name__ == "__main__":
    handle_from_start(preemptible=True)

import sys
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from fvl_lightning.comparison.cell import LOCK, is_finished
from fvl_lightning.comparison.result_files.cell import CellResult, CellSpec, TrialResult
from fvl_lightning.comparison.scoring.cell import score_cell, score_trial
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
from fvl_lightning.evaluation.kept_answers import remove_kept
from fvl_lightning.evaluation.while_training import open_evaluation
from fvl_lightning.launchers.placement import placed
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.run import reuse_or_train, run_training
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
        run = train(
            experiment, parent_run_id=spec.parent_run_id, tags=spec.tags, ranks=ranks, open_evaluation=open_evaluation
        )
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


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    begin_exit(code)
    sys.exit(code)
