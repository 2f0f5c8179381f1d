"""One real training step of a small model, as a check."""

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.experiment import ExperimentConfig, TrainerConfig
from fvl_lightning.doctor.finding import Finding, skipped
from fvl_lightning.doctor.model import unquantized
from fvl_lightning.runs.setup import build_stage, data_context, prepare_data
from fvl_lightning.stages.base import Stage
from fvl_lightning.training.components import count_parameters
from fvl_lightning.training.optimizer import build_optimizer

MAX_PARAMETERS_FOR_TRIAL_STEP = 50_000_000
"""Parameters of a model that takes a step on a login node in seconds."""


SCALE = "scale"
"""The variant by whose choice `tiny` presets shrink."""


KEPT = ("plugins", "fusion", "projector", "normalize", "trainable", "optimizer")
"""Keys of the command line that also hold for `scale=tiny`."""


FEW = {"train_images": 8, "validation_images": 4, "test_images": 4, "unseen_images": 4}
"""Of the demo set, where only one batch of it is wanted."""


def check_one_batch(
    path: Path, words: Sequence[str], experiment: ExperimentConfig, stage: Stage | None
) -> list[Finding]:
    """Forward pass, backward pass and update of one batch: of the model itself, or of its preset's `scale=tiny`."""
    parameters = sum(count["parameters"] for count in count_parameters(stage.model).values()) if stage else None
    if parameters is not None and parameters <= MAX_PARAMETERS_FOR_TRIAL_STEP:
        return _tried("the model itself", experiment)
    if experiment.chosen.get(SCALE) is None:
        if parameters is None:
            return [skipped("one batch", "the model")]
        advice = "try `fvl train` for a few steps, with a smaller language_model"
        said = f"not tried: {parameters:,} parameters are too many here, and no `{SCALE}=tiny` is offered"
        return [Finding("one batch", "warning", said, advice)]
    # Sizes and places of the real thing would not fit the small one.
    kept = [word for word in words if word.split("=")[0].split(".")[0] in (*KEPT, *experiment.chosen)]
    kept = [word for word in kept if not word.startswith(f"{SCALE}=")]
    small = load_config(ExperimentConfig, path, [*kept, f"{SCALE}=tiny"])
    settings = small.data.config
    few = {name: count for name, count in FEW.items() if name in vars(settings)}
    small = dataclasses.replace(
        small, data=dataclasses.replace(small.data, config=dataclasses.replace(settings, **few))
    )
    return _tried(f"{SCALE}=tiny, on pictures drawn into {settings.root}" if few else f"{SCALE}=tiny", small)


def _tried(named: str, experiment: ExperimentConfig) -> list[Finding]:
    began = time.monotonic()
    loss, norm = _step(unquantized(experiment))
    said = f"{named}: loss {loss:.4g}, gradient norm {norm:.4g}, {time.monotonic() - began:.1f} s"
    if math.isfinite(loss) and math.isfinite(norm):
        return [Finding("one batch", "ok", said)]
    return [
        Finding("one batch", "failed", said, "look at the samples with `fvl shards preview`, and at the components")
    ]


def _step(experiment: ExperimentConfig) -> tuple[float, float]:
    """Loss and gradient norm of two samples, with an update after them."""
    choice = experiment.data
    experiment = dataclasses.replace(
        experiment,
        data=dataclasses.replace(choice, config=dataclasses.replace(choice.config, workers=0)),
        trainer=TrainerConfig(batch_size=2),
    )
    data: Any = prepare_data(experiment)
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
