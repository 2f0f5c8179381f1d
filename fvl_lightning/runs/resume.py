"""Finds the run to resume, and checks that its configuration, inputs and threads are unchanged."""

from dataclasses import replace
from pathlib import Path

import torch

from datamodules.base import BatchData
from fvl_lightning.core.config.loading import as_plain
from fvl_lightning.core.device import compute_device
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.plugins import plugin_hashes, remember_plugins
from fvl_lightning.core.types import Position
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.identity import RunIdentity
from fvl_lightning.training.callbacks.evaluation import TrainingEvaluation
from fvl_lightning.training.checkpointing.last_and_previous import read_checkpoint, whole_checkpoint


def run_folder(
    experiment: ExperimentConfig,
    data: BatchData,
    stopped: RunFolder | None,
    evaluation: TrainingEvaluation | None = None,
) -> RunFolder:
    """Creates the folder of a new run; or returns `stopped`, after a check that its inputs have not changed.

    Raises:
        ConfigError: the configuration of `stopped` has changed.
        DataError: its data, plugins, weights or questions of its evaluation have changed.
    """
    identity = identity_of(experiment, data)
    if evaluation is not None:
        identity = replace(identity, inputs={**identity.inputs, **evaluation.identities})
    if stopped is not None:
        stopped.check_resumable(identity)
        return stopped
    run = RunFolder.create(Path(experiment.output), experiment.name, as_plain(experiment))
    run.record(inputs=dict(identity.inputs))
    remember_plugins(plugin_hashes(experiment.plugins).items())
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


def checkpoint_of(run: RunFolder) -> Path:
    """Returns the checkpoint to resume a run from; see whole_checkpoint."""
    return whole_checkpoint(run.checkpoints, run.info.get("config_hash"))


def saved_position(path: Path, accelerator: str) -> Position:
    """Returns the position in the data up to which a checkpoint has trained.

    Args:
        path: a checkpoint that `checkpoint_of` has found.
        accelerator: that of the run.

    Raises:
        ConfigError: the run used another number of CPU threads, which would give other bits.
    """
    checkpoint = read_checkpoint(path)
    saved_threads, position = checkpoint["threads"], checkpoint["position"]
    threads = torch.get_num_threads()
    if saved_threads != threads and compute_device(accelerator).type == "cpu":
        raise ConfigError(
            f"--resume: {path.parent.parent} ran with {saved_threads} threads and this process has {threads}, which "
            f"gives other bits; set trainer.threads or OMP_NUM_THREADS to {saved_threads}"
        )
    return position
