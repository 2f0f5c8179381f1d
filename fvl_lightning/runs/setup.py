"""Data, stage and initial weights of an experiment."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from datamodules.base import BatchData
from datamodules.detect_question_form import question_form_of
from fvl_lightning.core.device import compute_device
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.types import DataContext, ImageSpec, Position
from fvl_lightning.modeling.adapters.folders import is_model_folder
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.image_fit import pictures_of_model, pictures_of_run, warn_of_other_pictures
from fvl_lightning.runs.references import check_model
from fvl_lightning.stages.base import Stage
from fvl_lightning.training.distributed.process_group import Ranks
from fvl_lightning.training.feature_cache import FeatureCache, build_feature_cache
from fvl_lightning.training.load_weights import load_components

logger = logging.getLogger(__name__)


TRAINING_SPLITS = ["train", "validation"]
"""The splits that a training run reads."""


def prepare_data(experiment: ExperimentConfig, split: str | None = None) -> BatchData:
    """Returns the data module, with its shards (and the tokenizer of the demo set) on disk.

    Args:
        experiment: names the data.
        split: the only split that is needed; None for those of a training.

    Raises:
        ConfigError: the experiment sets no data.
        DataError: shards are missing or broken.
    """
    if experiment.data is None:
        raise ConfigError("data: the experiment sets no data, write for instance `data: {name: shards, root: ...}`")
    data: BatchData = experiment.data.component(experiment.data.config)
    data.prepare_data() if split is None else data.prepare_split(split)
    return data


def build_stage(experiment: ExperimentConfig, device: str = "cpu") -> Stage:
    """Returns the stage with its initialised model; on the meta device it has shapes without values."""
    if experiment.stage is None:
        raise ConfigError("stage: the experiment sets no stage, write for instance `stage: finetune`")
    return experiment.stage.component.build(experiment, device)


def build_training(
    experiment: ExperimentConfig, ranks: Ranks, position: Position = 0
) -> tuple[Stage, BatchData, list[dict[str, Any]]]:
    """Returns the stage with its initial weights, the data connected to it, and which component came from which run.

    Args:
        position: where in the data a resumed run goes on.

    Raises:
        ConfigError: components that do not fit each other, the data or the stage.
        DataError: shards or weights that are missing or broken.
    """
    data = ranks.rank0_first(lambda: prepare_data(experiment))
    stage, parents = weighted_stage(experiment, ranks)
    context = data_context(stage.model, stage.tokenizer, experiment, position)
    on_gpu = compute_device(experiment.trainer.accelerator).type == "cuda"
    data.connect(replace(context, rank=ranks.rank, world_size=ranks.world_size, byte_images=on_gpu))
    stage.asking = ranks.broadcast_from_rank0(lambda: question_form_of(data))
    attach_features(stage, data, experiment, ranks)
    return stage, data, parents


def weighted_stage(experiment: ExperimentConfig, ranks: Ranks) -> tuple[Stage, list[dict[str, Any]]]:
    """Returns the stage with its weights, and which components came from which run.

    Rank 0 loads the weights, and the other ranks receive them when the training starts. Until then they have shapes
    without values, since a machine would otherwise hold the model once per device. Only a quantised model is loaded by
    every rank, since each of them quantises it.
    """
    everywhere = experiment.lora is not None and experiment.lora.quantization is not None
    stage = build_stage(experiment, "cpu" if ranks.first or everywhere else "meta")
    share = ranks.rank0_first if everywhere else ranks.broadcast_from_rank0
    parents = share(lambda: start_from(stage, experiment))
    if experiment.trainer.strategy != "single":
        stage.frozen_hash = ranks.broadcast_from_rank0(lambda: stage.frozen_hash)
    return stage, parents


def start_from(stage: Stage, experiment: ExperimentConfig) -> list[dict[str, Any]]:
    """Loads the weights of `init_from` into the model; returns one entry per run or folder, with its components."""
    parents: list[dict[str, Any]] = []
    for reference in experiment.init_from:
        if is_model_folder(Path(reference)):
            parent: dict[str, Any] = {"run": reference, "run_id": None}
            folder = Path(reference)
            pictures = pictures_of_model(folder)
        else:
            run = RunFolder.open(reference)
            run.check_finished()
            check_model(run)
            parent = {"run": str(run.path), "run_id": run.info.get("mlflow_run_id")}
            folder, pictures = run.model, pictures_of_run(run)
        warn_of_other_pictures(experiment, reference, pictures)
        parents.append(parent | {"components": load_components(stage.model, folder, stage.inherits)})
    loaded = {component for parent in parents for component in parent["components"]}
    for component, mode in stage.trainable.items():
        choice = getattr(experiment, component)
        pretrained = getattr(choice.config, "pretrained", None)
        if mode == "frozen" and component not in loaded and pretrained is None:
            logger.warning("%s is frozen with random weights; name a run in init_from", component)
    return parents


def data_context(model: Any, tokenizer: Any, experiment: ExperimentConfig, position: Position = 0) -> DataContext:
    """Returns what the data module must know about the model and the run."""
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
        conditioned=whole and model.conditioned,
    )


def attach_features(stage: Stage, data: BatchData, experiment: ExperimentConfig, ranks: Ranks) -> None:
    """Has the data return cached features of the frozen encoder, if the experiment sets feature_cache.

    Raises:
        ConfigError: the encoder is trained in this stage.
    """
    if experiment.feature_cache is None:
        return
    if stage.trainable["encoder"] != "frozen":
        raise ConfigError("feature_cache: the encoder trains in this stage, its features change; freeze it or turn off")
    if data.STREAMS:
        raise ConfigError("feature_cache: samples of a stream have no numbers to keep features by; use data: shards")
    stage.train()
    data.attach_features(cached_features(stage, data, experiment, ranks))


def cached_features(
    stage: Stage,
    data: BatchData,
    experiment: ExperimentConfig,
    ranks: Ranks,
    progress: Callable[[str, int, int], None] = lambda split, done, total: None,
) -> FeatureCache:
    """Returns the features of the stage's encoder as the experiment caches them, computed on its accelerator."""
    assert experiment.feature_cache is not None
    return build_feature_cache(
        stage.model.encoder,
        data,
        TRAINING_SPLITS,
        Path(experiment.feature_cache),
        progress,
        device=compute_device(experiment.trainer.accelerator),
        dtype=experiment.feature_cache_dtype,
        workers=data.config.workers,
        ranks=ranks,
    )
