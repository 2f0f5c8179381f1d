"""Steps measured on this machine's device, kept beside the comparison and used while the configuration is equal."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fvl_lightning.comparison.estimates.costs import StageCost
from fvl_lightning.core.config.loading import Choice, as_plain, config_hash
from fvl_lightning.core.device import autocast, compute_device
from fvl_lightning.core.experiment import REPEATED, ExperimentConfig
from fvl_lightning.core.jsonl import read_sealed, write_sealed
from fvl_lightning.profiling.batch_shape import BatchShape, compute_loss
from fvl_lightning.profiling.devices import Device
from fvl_lightning.runs.setup import build_stage
from fvl_lightning.stages.base import Stage
from fvl_lightning.training.components import blocks
from fvl_lightning.training.distributed.block_transforms import transform_blocks
from fvl_lightning.training.optimizer import build_optimizer

FILE = "measured_steps.json"
STEPS = 3
"""Batches and updates that are measured, after one that warms up."""
MAX_CPU_FLOPS = 1e12
"""Operations of a batch beyond which a measurement on a CPU would take minutes."""
OF_A_STEP = (
    "stage", "encoder", "fusion", "projector", "language_model", "normalize", "fused_sources", "trainable", "lora"
)  # fmt: skip
"""Keys on which the time of a step depends, besides those of `trainer` and the optimiser's name."""
OF_THE_TRAINER = ("batch_size", "accumulate", "accelerator", "precision", "checkpoint_activations", "compile")


@dataclass
class MeasuredSteps:
    """The measurements in the folder of a comparison."""

    folder: Path
    device: Device
    """The device that is planned for; steps are measured only on one of this machine."""

    def seconds(self, cost: StageCost) -> float | None:
        """Returns the seconds of an optimiser step of a stage on the device; None where it was not measured."""
        entry = self._entries().get(self._key(cost))
        seconds = entry.get("seconds") if isinstance(entry, dict) else None
        return float(seconds) if isinstance(seconds, int | float) and seconds > 0 else None

    def measure(self, cost: StageCost) -> str:
        """Measures a stage and writes the result; returns why it was not measured, an empty text where it was.

        Weights are random and pixels zeros, since neither changes the time; data is not loaded.

        Raises:
            ConfigError: the stage cannot be built.
            DataError: the result cannot be written.
        """
        if reason := self._reason_against(cost):
            return reason
        if self.seconds(cost) is not None:
            return ""
        try:
            seconds = step_seconds(cost.experiment, batch_of(cost))
        except torch.OutOfMemoryError:
            return "a batch does not fit into the memory of this device"
        entry = {"seconds": seconds, "stage": cost.experiment.name, "device": self.device.name}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_sealed(self.folder / FILE, {**self._entries(), self._key(cost): {**entry, "torch": torch.__version__}})
        return ""

    def _reason_against(self, cost: StageCost) -> str:
        trainer = cost.experiment.trainer
        if not self.device.here:
            return f"{self.device.name} is not this machine's device"
        if trainer.world_size > 1:
            return "one process cannot measure a training on several devices"
        flops = cost.batch.executed * trainer.batch_size / cost.rows.counted.rows
        if self.device.is_cpu and flops > MAX_CPU_FLOPS:
            return f"a batch takes {flops / 1e12:,.1f} x 10^12 operations, too many for a CPU"
        return ""

    def _entries(self) -> dict[str, Any]:
        try:
            return read_sealed(self.folder / FILE)
        except (OSError, ValueError):  # none yet, or a damaged one, which is measured again
            return {}

    def _key(self, cost: StageCost) -> str:
        """Returns a name of everything on which the time of a step depends."""
        plain = as_plain(cost.experiment)
        parts = {key: plain[key] for key in OF_A_STEP} | {key: plain["trainer"][key] for key in OF_THE_TRAINER}
        shape = dataclasses.astuple(batch_of(cost))
        more = [plain["optimizer"]["name"], shape, plain["feature_cache"] is None, self.device.name, torch.__version__]
        return config_hash([parts, more])


def batch_of(cost: StageCost) -> BatchShape:
    """Returns the batch of a training: `batch_size` rows of mean length."""
    counted, rows = cost.rows.counted, cost.experiment.trainer.batch_size
    images = max(1, round(rows * cost.rows.images)) if counted.images else 0
    return BatchShape(rows, counted.tokens, images, counted.supervised)


def step_seconds(experiment: ExperimentConfig, shape: BatchShape) -> float:
    """Trains a few steps of random weights on this machine's device, and returns the seconds of an optimiser step.

    Raises:
        ConfigError: the stage cannot be built.
        torch.OutOfMemoryError: a batch does not fit.
    """
    trainer, device = experiment.trainer, compute_device(experiment.trainer.accelerator)
    stage = _random_stage(experiment).to(device)
    transform_blocks(partial(blocks, stage.model), trainer)
    stage.train()
    optimizer = build_optimizer(stage.model, experiment.optimizer)

    def train_batches(number: int) -> None:
        for _ in range(number):
            train_batch()

    def train_batch() -> None:
        with device, autocast(device, trainer.precision):
            loss = compute_loss(experiment, stage.model, shape)
        loss.backward()

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    train_batch()
    update()
    batch = _seconds(lambda: train_batches(STEPS), device) / STEPS
    return trainer.accumulate * batch + _seconds(update, device)


def _random_stage(experiment: ExperimentConfig) -> Stage:
    """Builds the stage with random values for its pretrained components, so that no weights are downloaded."""
    changes: dict[str, Any] = {}
    for slot in REPEATED:
        choice = getattr(experiment, slot)
        pretrained = getattr(choice.config, "pretrained", None) if choice is not None else None
        if pretrained is not None:
            resolved = choice.component.resolve(choice.config)
            values = {"pretrained": None, "tokenizer": getattr(resolved, "tokenizer", None) or pretrained}
            known = {name: value for name, value in values.items() if hasattr(resolved, name)}
            changes[slot] = Choice(slot, choice.name, dataclasses.replace(resolved, **known))
    stage = build_stage(dataclasses.replace(experiment, **changes))
    stage.adapt(Path())
    return stage


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Returns the seconds of `work`, until a device that runs behind has ended it."""
    _wait_for(device)
    began = time.perf_counter()
    work()
    _wait_for(device)
    return time.perf_counter() - began


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
