"""Finds the run to resume, and checks that its configuration, inputs and threads are unchanged."""

from pathlib import Path
from pickle import UnpicklingError

import torch

from datamodules.base import BatchData
from fvl_lightning.core.config.loading import as_plain
from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.types import Position
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.identity import RunIdentity
from fvl_lightning.training.checkpointing.files import read_checkpoint


def run_folder(experiment: ExperimentConfig, data: BatchData, stopped: RunFolder | None) -> RunFolder:
    """Creates the folder of a new run; or returns `stopped`, after a check that its inputs have not changed.

    Raises:
        ConfigError: the configuration of `stopped` has changed.
        DataError: its data, plugins or weights have changed.
    """
    identity = identity_of(experiment, data)
    if stopped is not None:
        stopped.check_resumable(identity)
        return stopped
    run = RunFolder.create(Path(experiment.output), experiment.name, as_plain(experiment))
    run.record(inputs=dict(identity.inputs))
    return run


def identity_of(experiment: ExperimentConfig, data: BatchData) -> RunIdentity:
    """Returns the identity of a run of this experiment on this data, which must be prepared."""
    return RunIdentity.of(experiment, data.content_hash())


def stopped_run(experiment: ExperimentConfig) -> RunFolder:
    """Returns the newest run of this name.

    Raises:
        ConfigError: it is finished, or has another configuration.
        DataError: there is none, its inputs have changed, or it has no checkpoint.
    """
    identity = RunIdentity.of(experiment)
    run = RunFolder.latest(Path(experiment.output), experiment.name, identity)
    if run.finished:
        raise ConfigError(f"--resume: {run.path} is finished; start a new run without --resume")
    run.check_resumable(identity)
    return run


def saved_position(path: Path) -> Position:
    """Returns the position in the data up to which a checkpoint has trained.

    Raises:
        DataError: the file is no checkpoint of this kit.
        ConfigError: the run used another number of CPU threads, which would give other bits.
    """
    try:
        checkpoint = read_checkpoint(path)
        saved_threads, position = checkpoint["threads"], checkpoint["position"]
    except (RuntimeError, OSError, EOFError, UnpicklingError, KeyError):
        raise DataError(f"--resume: {path} is no checkpoint of this kit; start a new run") from None
    threads = torch.get_num_threads()
    if saved_threads != threads and not torch.cuda.is_available():
        raise ConfigError(
            f"--resume: {path.parent.parent} ran with {saved_threads} threads and this process has {threads}, which "
            f"gives other bits; set trainer.threads or OMP_NUM_THREADS to {saved_threads}"
        )
    return position
