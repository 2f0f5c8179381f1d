"""Stages with the tiny model, run by Lightning's Trainer on batches made by hand."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.loggers.logger import Logger

from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.stages.base import Stage
from fvl_lightning.training.callbacks.evaluation import best_by
from fvl_lightning.training.checkpointing.callback import CheckpointCallback
from fvl_lightning.training.fault_tolerance.signals import StopSignals
from fvl_lightning.training.trainer import build_trainer
from tests.tiny_models import experiment, micro_batches, prompted, rows

VIEWS = {
    "encoder_pretrain": "tasks",
    "align": "caption",
    "pretrain": "caption",
    "finetune": "conversation",
    "alignment_probe": "caption",
}
"""Every stage with a view it learns from."""
CONFIGS = {"alignment_probe": {"captions": 2}}
"""Fields of stages that do not learn from these few samples by default."""

STAGES = list(VIEWS)


class Loader:
    """Hands out batches in order; a list would be taken for a list of loaders."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def experiment_of(name: str, folder: Path, **changes: Any) -> ExperimentConfig:
    """A checked experiment of the stage `name`."""
    return experiment(folder, {"name": name, **CONFIGS.get(name, {})}, VIEWS[name], **changes)


def build_stage(name: str, folder: Path, device: str = "cpu", **changes: Any) -> Stage:
    """The stage `name` over the tiny model, its values those of seed 0; on the meta device without any."""
    config = experiment_of(name, folder, **changes)
    return config.stage.component.build(config, device)


def batches_of(name: str, count: int, size: int = 4, first: int = 0) -> list[Any]:
    """`count` unlike batches of `size` samples that the stage can learn from, their positions counting up."""
    make = prompted if VIEWS[name] == "tasks" else rows
    return [make(size, seed=step, position=(step + 1) * size) for step in range(first, first + count)]


def split(batches: Sequence[Any], parts: int) -> list[Any]:
    """Every batch in `parts` micro-batches."""
    return [part for batch in batches for part in micro_batches(batch, parts)]


def fit(
    stage: Stage,
    batches: Sequence[Any],
    folder: Path,
    callbacks: Sequence[Callback] = (),
    resume: Path | None = None,
    validation: Sequence[Any] | None = None,
    loggers: Sequence[Logger] = (),
    better: Mapping[str, bool] | None = None,
) -> Trainer:
    """Trains as `fvl train` does, with the experiment's trainer; the last checkpoint lies at folder/last.ckpt.

    `better` tells of scores that the best weights are kept by whether higher ones are better.
    """
    config = stage.experiment.trainer
    checkpoints = CheckpointCallback(
        folder / "last.ckpt", config.checkpoint_every, signals := StopSignals(), best_by(config, better or {})
    )
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)  # it tells about its devices at every fit
    try:
        trainer = build_trainer(config, folder, list(loggers), [*callbacks, checkpoints])
        with warnings.catch_warnings(), signals:
            warnings.filterwarnings("ignore", module="lightning")
            trainer.fit(
                stage,
                train_dataloaders=Loader(batches),
                val_dataloaders=None if validation is None else Loader(validation),
                ckpt_path=resume,
                weights_only=True,
            )
    finally:
        log.setLevel(level)
    return trainer
