"""One real training step of a small model, as a check."""

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from datamodules.base import BatchData
from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig, TrainerConfig
from fvl_lightning.doctor.finding import Finding, skipped
from fvl_lightning.doctor.model import unquantized
from fvl_lightning.runs.setup import build_stage, data_context, prepare_data
from fvl_lightning.stages.base import Stage
from fvl_lightning.training.components import count_parameters
from fvl_lightning.training.optimizer import build_optimizer

MAX_PARAMETERS_FOR_TRIAL_STEP = 50_000_000
"""A model of this size takes a step on a login node in seconds."""


SCALE = "scale"
"""The variant whose choice `tiny` makes a preset small."""


OVERRIDES_KEPT_AT_TINY_SCALE = (
    "plugins", "fusion", "projector", "normalize", "source_dropout", "fused_sources", "trainable", "optimizer"
)  # fmt: skip
"""Overrides by these keys also apply at `scale=tiny`; sizes and paths of the full model would not fit the small one."""


def check_one_batch(
    path: Path, overrides: Sequence[str], experiment: ExperimentConfig, stage: Stage | None
) -> list[Finding]:
    """Trains one step on one batch: the model itself where it is small enough, otherwise the preset's `scale=tiny`."""
    parameters = sum(count["parameters"] for count in count_parameters(stage.model).values()) if stage else None
    if parameters is not None and parameters <= MAX_PARAMETERS_FOR_TRIAL_STEP:
        return _try_step("the model itself", experiment)
    if experiment.chosen.get(SCALE) is None:
        if parameters is None:
            return [skipped("one batch", "the model")]
        advice = "try `fvl train` for a few steps, with a smaller language_model"
        message = f"not tried: {parameters:,} parameters are too many here, and no `{SCALE}=tiny` is offered"
        return [Finding("one batch", "warning", message, advice)]
    keys = {*OVERRIDES_KEPT_AT_TINY_SCALE, *experiment.chosen} - {SCALE}
    kept = [override for override in overrides if override.split("=")[0].split(".")[0] in keys]
    small = load_config(ExperimentConfig, path, [*kept, f"{SCALE}=tiny"])
    small = dataclasses.replace(
        small, data=dataclasses.replace(small.data, config=small.data.config.for_one_batch())
    )
    try:
        return _try_step(f"{SCALE}=tiny on {small.data.name} data", small)
    except ConfigError as error:
        if not str(error).startswith("projector"):
            raise
        advice = "the map of the small model has other sides; try `fvl train` for a few steps"
        return [Finding("one batch", "warning", f"not tried with {SCALE}=tiny: {error}", advice)]


def _try_step(name: str, experiment: ExperimentConfig) -> list[Finding]:
    began = time.monotonic()
    loss, norm = _training_step(unquantized(experiment))
    message = f"{name}: loss {loss:.4g}, gradient norm {norm:.4g}, {time.monotonic() - began:.1f} s"
    if math.isfinite(loss) and math.isfinite(norm):
        return [Finding("one batch", "ok", message)]
    return [
        Finding("one batch", "failed", message, "look at the samples with `fvl shards preview`, and at the components")
    ]


def _training_step(experiment: ExperimentConfig) -> tuple[float, float]:
    """Takes one optimizer step on two samples; returns the loss and the gradient norm."""
    choice = experiment.data
    experiment = dataclasses.replace(
        experiment,
        data=dataclasses.replace(choice, config=dataclasses.replace(choice.config, workers=0)),
        trainer=TrainerConfig(batch_size=2),
    )
    data: BatchData = prepare_data(experiment)
    stage = build_stage(experiment)
    stage.adapt(Path())
    data.connect(data_context(stage.model, stage.tokenizer, experiment))
    stage.train()
    loss, _ = stage.compute(next(iter(data.train_dataloader())))
    loss.mean.backward()
    optimizer = build_optimizer(stage.model, experiment.optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, float("inf"))
    optimizer.step()
    return float(loss.mean.detach()), float(norm)
