"""`fvl train`: one experiment file, one run."""

import dataclasses
import logging
import sys
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from datamodules.encoding.question_form import asking_of
from fvl_lightning.core.atomic import readable
from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.terminal import say
from fvl_lightning.core.types import DataContext, ImageSpec
from fvl_lightning.inference.adapters import give_adapters
from fvl_lightning.launchers.ranks import run_ranks
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration
from fvl_lightning.runs.folder import RunFolder, is_model_folder
from fvl_lightning.runs.image_fit import pictures_of_model, pictures_of_run, warn_of_other_pictures
from fvl_lightning.runs.resume import identity_of, run_folder, saved_position, stopped_run
from fvl_lightning.runs.tracking import note_trouble, tracked
from fvl_lightning.stages.base import Stage
from fvl_lightning.tracking.metrics_log import Journal
from fvl_lightning.tracking.store import open_store
from fvl_lightning.training.checkpointing.callback import Checkpoints
from fvl_lightning.training.checkpointing.files import whole_checkpoint
from fvl_lightning.training.components import count_parameters
from fvl_lightning.training.distributed.process_group import Ranks, joined, own_rank, started_ranks
from fvl_lightning.training.fault_tolerance.heartbeat import Beats
from fvl_lightning.training.fault_tolerance.signals import Stop, StopSignals, preemptible
from fvl_lightning.training.feature_cache import build_feature_cache
from fvl_lightning.training.lora import adapted, adapter_bytes
from fvl_lightning.training.step_logging import LogWindow, StepProgress, peak_memory_bytes
from fvl_lightning.training.trainer import build_trainer, check_machine
from fvl_lightning.training.weights import load_components, weights_hash

logger = logging.getLogger(__name__)

TRAINING_SPLITS = ["train", "validation"]
"""What a training run reads."""


def train(
    experiment: Annotated[Path, typer.Argument(help="Experiment file, such as experiments/demo/finetune.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value words, such as fusion=gated.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the newest run of this name.")] = False,
    resume_or_start: Annotated[
        bool, typer.Option("--resume-or-start", help="Go on where there is a run to go on with, else start: for jobs.")
    ] = False,
) -> None:
    """Train one stage.

    Example: `fvl train experiments/demo/finetune.yaml fusion=gated trainer.max_steps=20`
    """
    if resume and resume_or_start:
        raise ConfigError("--resume, --resume-or-start: they differ where there is no run to go on with; give one")
    config = load_config(ExperimentConfig, experiment, overrides or ())
    check_machine(config.trainer)
    if config.trainer.devices > 1 and config.trainer.nodes == 1 and started_ranks() == 1:
        options = {"--resume": resume, "--resume-or-start": resume_or_start}
        words = ["train", str(experiment), *(overrides or ()), *(word for word, given in options.items() if given)]
        sys.exit(run_ranks(config.trainer.devices, words))
    run = reuse_or_train(config) if resume_or_start else run_training(config, stopped_run(config) if resume else None)
    if own_rank() > 0:
        return
    for name in ("train/loss", "validation/loss", "validation/token_accuracy"):
        if curve := run.curve(name):
            say(f"{name} {curve[-1][1]:.4f} at step {curve[-1][0]}")
    say(f"finished: {run.path}   (model in {run.model})")


def reuse_or_train(
    experiment: ExperimentConfig, parent_run_id: str | None = None, tags: Mapping[str, str] | None = None
) -> RunFolder:
    """The newest run of this very configuration, finished where it is not yet; a new one where there is none.

    A run is another one where the code of its plugins, or the content of its data, is no longer what it was.
    """
    run, output = None, Path(experiment.output)
    if RunFolder.named(output, experiment.name):
        run = RunFolder.reusable(output, experiment.name, identity_of(experiment, prepare_data(experiment)))
    return run if run and run.finished else run_training(experiment, run, parent_run_id, tags)


@preemptible()
def run_training(
    experiment: ExperimentConfig,
    stopped: RunFolder | None = None,
    parent_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> RunFolder:
    """Trains one stage from a checked configuration, from where `stopped` was left; returns the finished run.

    Args:
        parent_run_id: the MLflow run above this one.
        tags: further ones for its MLflow run.

    Raises:
        ConfigError, DataError: what the user can mend.
        KeyboardInterrupt: after Ctrl-C, once the step under way is finished and saved.
        Preempted: after SIGTERM or SIGUSR1, likewise.
    """
    check_machine(experiment.trainer)
    if experiment.trainer.threads is not None:
        torch.set_num_threads(experiment.trainer.threads)
    with joined(experiment.trainer) as ranks:
        stopped = ranks.agree(lambda: stopped)
        ranks.agree(lambda: begin_tracking(experiment, stopped))
        data = ranks.in_turn(lambda: prepare_data(experiment))
        stage, parents = weighted_stage(experiment, ranks)
        checkpoint = ranks.agree(lambda: whole_checkpoint(stopped.checkpoints) if stopped else None)
        position = saved_position(checkpoint) if checkpoint else 0
        context = data_context(stage.model, stage.tokenizer, experiment, position)
        data.connect(replace(context, rank=ranks.rank, world_size=ranks.world_size))
        stage.asking = ranks.agree(lambda: asking_of(data))
        attach_features(stage, data, experiment, ranks)
        run = ranks.agree(lambda: run_folder(experiment, data, stopped))
        ranks.in_turn(lambda: give_adapters(stage, run, parents))
        ranks.agree(lambda: record_model(stage, run, parents))
        with ExitStack() as followed:
            tracker = None
            if ranks.first:
                followed.enter_context(run.held())
                tracker = followed.enter_context(tracked(experiment, run, stage, data, parent_run_id, tags or {}))
            followed.enter_context(ranks.explained(lambda error: note_trouble(run, error)))
            fit(stage, data, experiment, run, tracker, checkpoint, ranks.beats())
            stage.gather()
            ranks.agree(lambda: finish(stage, run))
    return run


def begin_tracking(experiment: ExperimentConfig, stopped: RunFolder | None) -> None:
    """Opens the store of a new run, or nothing is begun."""
    if experiment.tracking.enabled and stopped is None:
        open_store(experiment.tracking.uri, experiment.tracking.experiment)


def prepare_data(experiment: ExperimentConfig) -> Any:
    """The data module, its shards (and the demo's tokenizer) on disk."""
    if experiment.data is None:
        raise ConfigError("data: the experiment names no data, write for instance `data: {name: shards, root: ...}`")
    data = experiment.data.component(experiment.data.config)
    data.prepare_data()
    return data


def build_stage(experiment: ExperimentConfig, device: str = "cpu") -> Stage:
    """The stage with its initialised model."""
    if experiment.stage is None:
        raise ConfigError("stage: the experiment names no stage, write for instance `stage: finetune`")
    return experiment.stage.component.build(experiment, device)


def weighted_stage(experiment: ExperimentConfig, ranks: Ranks) -> tuple[Stage, list[dict[str, Any]]]:
    """The stage, on the first rank with its weights, which the others take over; and what came from where.

    Where they are to be sharded the others build shapes alone, or a machine would hold the model once per device.
    """
    shapes = experiment.trainer.sharded and not ranks.first
    stage = build_stage(experiment, "meta" if shapes else "cpu")
    parents = ranks.agree(lambda: start_from(stage, experiment))
    if experiment.trainer.strategy != "single":
        stage.frozen_hash = ranks.agree(lambda: stage.frozen_hash)
    return stage, parents


def start_from(stage: Stage, experiment: ExperimentConfig) -> list[dict[str, Any]]:
    """Loads the weights of earlier runs or of model folders into the model; returns what came from where."""
    parents: list[dict[str, Any]] = []
    for reference in experiment.init_from:
        if is_model_folder(Path(reference)):
            parent: dict[str, Any] = {"run": reference, "run_id": None}
            folder = Path(reference)
            pictures = pictures_of_model(folder)
        else:
            run = RunFolder.open(reference)
            run.check_finished()
            parent = {"run": str(run.path), "run_id": run.info.get("mlflow_run_id")}
            folder, pictures = run.model, pictures_of_run(run)
        warn_of_other_pictures(experiment, reference, pictures)
        parents.append(parent | {"components": load_components(stage.model, folder)})
    loaded = {component for parent in parents for component in parent["components"]}
    for component, mode in stage.trainable.items():
        choice = getattr(experiment, component)
        pretrained = getattr(choice.config, "pretrained", None)
        if mode == "frozen" and component not in loaded and pretrained is None:
            logger.warning("%s is frozen with random weights; name a run in init_from", component)
    return parents


def data_context(model: Any, tokenizer: Any, experiment: ExperimentConfig, position: int = 0) -> DataContext:
    """What the data module must know of the model and the run."""
    encoder = model.encoder
    whole = isinstance(model, FlorenceVLForConditionalGeneration)
    return DataContext(
        image=model.image_spec if whole else ImageSpec(encoder.image_size, encoder.mean, encoder.std, 0),
        tokenizer=tokenizer,
        image_token_id=model.config.image_token_id if whole else -1,
        tasks=encoder.tasks,
        batch_size=experiment.trainer.batch_size,
        seed=experiment.seed,
        position=position,
    )


def attach_features(stage: Stage, data: Any, experiment: ExperimentConfig, ranks: Ranks) -> None:
    """Hands the frozen encoder's cached features to the data, where the experiment asks for them."""
    if experiment.feature_cache is None:
        return
    if stage.trainable["encoder"] != "frozen":
        raise ConfigError("feature_cache: the encoder trains in this stage, its features change; freeze it or turn off")
    stage.train()
    folder = Path(experiment.feature_cache)
    cache = ranks.agree(lambda: build_feature_cache(stage.model.encoder, data, TRAINING_SPLITS, folder))
    data.attach_features(cache)


def record_model(stage: Stage, run: RunFolder, parents: list[dict[str, Any]]) -> None:
    """What is about to be trained, into run.json."""
    counts = count_parameters(stage.model)
    run.record(
        init_from=parents,
        parameters=sum(count["parameters"] for count in counts.values()),
        trainable=sum(count["trainable"] for count in counts.values()),
        components=counts,
        adapter_bytes=adapter_bytes(stage.model, stage.trainable) if adapted(stage.trainable) else None,
        encoder_hash=weights_hash(stage.model.encoder.feature_state()),
        threads=torch.get_num_threads(),
        asking=dataclasses.asdict(stage.asking),
    )


def fit(
    stage: Stage,
    data: Any,
    experiment: ExperimentConfig,
    run: RunFolder,
    tracker: Any,
    checkpoint: Path | None,
    beats: Beats,
) -> None:
    """The training loop, from `checkpoint` where there is one; after a stop that was asked for it raises who asked.

    Without a `tracker`, on all ranks but the first, nothing is written, logged or shown.
    """
    log = LogWindow(experiment.trainer.log_every)
    signals = StopSignals()
    every, keep_best = experiment.trainer.checkpoint_every, experiment.trainer.keep_best
    checkpoints = Checkpoints(run.last_checkpoint, every, signals, keep_best)
    title = f"{experiment.name} ({experiment.fusion.name})" if experiment.fusion else experiment.name
    loggers: list[Any] = [Journal(run.metrics, tracker)] if tracker else []
    callbacks = [log, *([StepProgress(title, run.path, log)] if tracker else []), checkpoints, beats]
    trainer = build_trainer(experiment.trainer, run.path, loggers, callbacks)
    torch.manual_seed(experiment.seed + own_rank())  # for dropout; initial values and the data's order have their own
    with warnings.catch_warnings(), signals:
        # Lightning advises more loader workers and names what it does not find; both are choices here.
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # none of the blocks' outputs is changed
        try:
            trainer.fit(
                stage,
                train_dataloaders=data.train_dataloader(),
                val_dataloaders=data.val_dataloader(),
                ckpt_path=checkpoint,
                weights_only=True,
            )
        except SystemExit:  # what Lightning makes of a Ctrl-C that does not wait for the step's end
            (signals.requested or Stop.PERSON).raise_for()
    if tracker:
        speeds = sorted(log.tokens_per_second)
        run.record(
            steps=trainer.global_step,
            seconds=run.info.get("seconds", 0.0) + log.total_seconds,
            tokens_per_second=speeds[len(speeds) // 2] if speeds else None,
            peak_memory_bytes=peak_memory_bytes(),
        )
    checkpoints.stop.raise_for()


def finish(stage: Stage, run: RunFolder) -> None:
    """Saves the model; a frozen encoder must be the one the run started with."""
    encoder_hash = weights_hash(stage.model.encoder.feature_state())
    frozen = stage.trainable["encoder"] == "frozen"
    assert not frozen or encoder_hash == run.info["encoder_hash"], "the frozen encoder changed during training"
    stage.save_model(run.model)
    readable(run.model)
    run.record(encoder_hash=encoder_hash)
