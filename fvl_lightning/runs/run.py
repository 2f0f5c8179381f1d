"""Trains an experiment: set-up, fit, results and tracking."""

import dataclasses
import warnings
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch

from datamodules.base import BatchData
from datamodules.storage.content_hash import file_hashes
from fvl_lightning.core.atomic import share_file_modes
from fvl_lightning.core.errors import DataError, full_disk
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.terminal import own_rank
from fvl_lightning.core.weight_files import weights_hash
from fvl_lightning.modeling.attention.choice import preferred_kernels
from fvl_lightning.runs.adapter_base import attach_trainable_adapters
from fvl_lightning.runs.extensions import OpenEvaluation, callbacks_of, loggers_of, opened_evaluation
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.resume import checkpoint_of, identity_of, run_folder, saved_position
from fvl_lightning.runs.setup import build_training, prepare_data
from fvl_lightning.runs.tracking import note_trouble, tracked
from fvl_lightning.stages.base import Stage
from fvl_lightning.tracking.metrics_log import JsonlLogger
from fvl_lightning.tracking.store import open_store
from fvl_lightning.training.callbacks.evaluation import TrainingEvaluation, best_by, evaluation_callbacks
from fvl_lightning.training.checkpointing.callback import CheckpointCallback
from fvl_lightning.training.checkpointing.last_and_previous import remove_unfinished
from fvl_lightning.training.components import count_parameters
from fvl_lightning.training.distributed.process_group import Ranks, training_group
from fvl_lightning.training.fault_tolerance.heartbeat import HeartbeatCallback
from fvl_lightning.training.fault_tolerance.signals import Stop, StopSignals, preemptible
from fvl_lightning.training.lora import adapter_bytes, lora_components
from fvl_lightning.training.memory_peak import peak_memory_bytes
from fvl_lightning.training.progress import StepProgress
from fvl_lightning.training.step_logging import LogWindow
from fvl_lightning.training.torch_settings import torch_settings
from fvl_lightning.training.trainer import build_trainer, check_machine


def reuse_or_train(
    experiment: ExperimentConfig,
    parent_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
    ranks: Ranks | None = None,
    open_evaluation: OpenEvaluation | None = None,
) -> RunFolder:
    """Returns the newest run of this configuration, and finishes it if it is not finished; or trains a new one.

    A run whose plugins or data have changed since is not reused. One that was trained on other devices is, where each
    of its steps has the same samples.

    Args:
        experiment, parent_run_id, tags, ranks, open_evaluation: see `run_training`.
    """
    output, group = Path(experiment.output), ranks or Ranks()

    def find() -> RunFolder | None:
        if not RunFolder.named(output, experiment.name):
            return None
        return RunFolder.reusable(output, experiment.name, identity_of(experiment, prepare_data(experiment)))

    run = group.broadcast_from_rank0(find)
    if run and run.finished:
        return run
    return run_training(experiment, run, parent_run_id, tags, ranks, open_evaluation)


@preemptible()
def run_training(
    experiment: ExperimentConfig,
    stopped: RunFolder | None = None,
    parent_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
    ranks: Ranks | None = None,
    open_evaluation: OpenEvaluation | None = None,
) -> RunFolder:
    """Trains one stage and returns the finished run.

    Args:
        experiment: a checked configuration.
        stopped: the run to resume; None starts a new one.
        parent_run_id: the id of the parent run in MLflow.
        tags: further tags of the MLflow run.
        ranks: the process group, where this process has joined one already.
        open_evaluation: opens the tasks of `trainer.evaluate`; that of evaluation/while_training.py.

    Raises:
        ConfigError, DataError: errors that the user can fix.
        KeyboardInterrupt: after Ctrl-C, once the step under way is finished and a checkpoint is written.
        Preempted: the same after SIGTERM or SIGUSR1.
    """
    check_machine(experiment.trainer)
    if experiment.trainer.threads is not None:
        torch.set_num_threads(experiment.trainer.threads)
    with torch_settings(experiment.trainer), training_group(experiment.trainer, ranks) as ranks:
        stopped = ranks.broadcast_from_rank0(lambda: stopped)
        ranks.broadcast_from_rank0(lambda: begin_tracking(experiment, stopped))
        checkpoint = ranks.broadcast_from_rank0(lambda: checkpoint_of(stopped) if stopped else None)
        position = saved_position(checkpoint, experiment.trainer.accelerator) if checkpoint else 0
        evaluation = ranks.rank0_first(lambda: opened_evaluation(experiment, open_evaluation, ranks))
        stage, data, parents = build_training(experiment, ranks, position)
        stage.attention.check()
        run = ranks.broadcast_from_rank0(lambda: run_folder(experiment, data, stopped, evaluation))
        ranks.rank0_first(lambda: attach_trainable_adapters(stage, parents, run))
        ranks.broadcast_from_rank0(lambda: record_model(stage, run, parents))
        with ExitStack() as followed:
            metrics_log = None
            if ranks.first:
                followed.enter_context(run.held())
                remove_unfinished(run.checkpoints)
                metrics_log = followed.enter_context(tracked(experiment, run, stage, data, parent_run_id, tags or {}))
            followed.enter_context(ranks.explain_errors(lambda error: note_trouble(run, error)))
            stage.run_hash = ranks.broadcast_from_rank0(lambda: run.info.get("config_hash"))
            fit(stage, data, experiment, run, metrics_log, checkpoint, ranks.heartbeat_callback(), evaluation)
            stage.gather()
            ranks.broadcast_from_rank0(lambda: finish(stage, run))
    return run


def begin_tracking(experiment: ExperimentConfig, stopped: RunFolder | None) -> None:
    """Opens the tracking store of a new run first, so that a run never starts without one."""
    if experiment.tracked and stopped is None:
        open_store(experiment.tracking.uri, experiment.tracking.experiment)


def record_model(stage: Stage, run: RunFolder, parents: list[dict[str, Any]]) -> None:
    """Writes the model's size, origin and hash into run.json."""
    counts = count_parameters(stage.model)
    run.record(
        init_from=parents,
        parameters=sum(count["parameters"] for count in counts.values()),
        trainable=sum(count["trainable"] for count in counts.values()),
        components=counts,
        adapter_bytes=adapter_bytes(stage.model, stage.trainable) if lora_components(stage.trainable) else None,
        encoder_hash=weights_hash(stage.model.encoder.feature_state()),
        threads=torch.get_num_threads(),
        float32_matmul_precision=torch.get_float32_matmul_precision(),
        attention=stage.attention.name,
        asking=dataclasses.asdict(stage.asking),
    )


def fit(
    stage: Stage,
    data: BatchData,
    experiment: ExperimentConfig,
    run: RunFolder,
    metrics_log: JsonlLogger | None,
    checkpoint: Path | None,
    beats: HeartbeatCallback,
    evaluation: TrainingEvaluation | None = None,
) -> None:
    """Runs the training loop, from `checkpoint` if there is one.

    Without a `metrics_log`, which only rank 0 has, nothing is written, logged or shown.

    Raises:
        KeyboardInterrupt, Preempted: a signal stopped the training, and a checkpoint is written.
    """
    config, signals = experiment.trainer, StopSignals()
    log = LogWindow(config.log_every, run.info.get("seconds") or 0.0)
    best = best_by(config, evaluation.higher_is_better if evaluation else {})
    checkpoints = CheckpointCallback(run.last_checkpoint, config.checkpoint_every, signals, best)
    title = f"{experiment.name} ({experiment.fusion.name})" if experiment.fusion else experiment.name
    loggers = loggers_of(experiment, run, metrics_log, checkpoint)
    shown = [StepProgress(title, run.path, log)] if metrics_log else []
    scored = evaluation_callbacks(evaluation, config, signals)
    callbacks = callbacks_of(experiment, [log, *shown, *scored], [checkpoints, beats])
    trainer = build_trainer(experiment.trainer, run.path, loggers, callbacks)
    torch.manual_seed(experiment.seed + own_rank())  # for dropout; the rest has seeds of its own
    with warnings.catch_warnings(), signals:
        # Lightning advises more loader workers and lists missing hooks; both are choices here.
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # no output of a block is changed
        training, validation = data.train_dataloader(), data.val_dataloader()
        try:
            # Lightning closes no iterator to which an error refers.
            with closing(training), closing(validation), preferred_kernels(stage.attention):
                trainer.fit(stage, training, validation, ckpt_path=checkpoint, weights_only=True)
        except SystemExit:  # Lightning raises it after a Ctrl-C that does not wait for the end of the step
            (signals.requested or Stop.PERSON).raise_for()
    if metrics_log:
        run.record(
            steps=trainer.global_step,
            seconds=log.total_seconds,
            tokens_per_second=log.median_speed,
            peak_memory_bytes=peak_memory_bytes(trainer.strategy.root_device),
        )
    checkpoints.stop.raise_for()


def finish(stage: Stage, run: RunFolder) -> None:
    """Saves the model.

    Raises:
        DataError: the weights of a frozen encoder have changed, or the disk is full.
    """
    encoder_hash = weights_hash(stage.model.encoder.feature_state())
    if stage.trainable["encoder"] == "frozen" and encoder_hash != run.info["encoder_hash"]:
        raise DataError("trainable.encoder: the encoder is frozen, but its weights have changed during the training")
    try:
        stage.save_model(run.model)
        share_file_modes(run.model)
    except Exception as error:
        reason = full_disk(error, run.path)
        if reason is None:
            raise
        raise DataError(f"{run.model} cannot be written ({reason}); make room, `--resume` finishes the run") from None
    run.record(encoder_hash=encoder_hash, files=file_hashes(run.model))
