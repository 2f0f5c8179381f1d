"""Lightning's Trainer, set up the one way this kit uses it."""

from pathlib import Path

import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers.logger import Logger

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import TrainerConfig
from fvl_lightning.training.checkpoint_files import CheckpointFiles


def check_accelerator(name: str) -> None:
    """ConfigError where the experiment asks for a kind of device that this machine does not have."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present.get(name, True):
        raise ConfigError(f"trainer.accelerator: this machine has no {name} device; take auto or cpu")


def build_trainer(config: TrainerConfig, folder: Path, loggers: list[Logger], callbacks: list[Callback]) -> Trainer:
    """One device; steps, not epochs; logging, progress and checkpoints through our callbacks."""
    return Trainer(
        accelerator=config.accelerator,
        devices=1,
        precision=config.precision,
        max_steps=config.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=config.accumulate,
        val_check_interval=min(config.validate_every, config.max_steps) * config.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=loggers,
        callbacks=callbacks,
        plugins=[CheckpointFiles()],
        enable_checkpointing=True,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
