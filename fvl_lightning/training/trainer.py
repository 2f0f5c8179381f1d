"""Lightning's Trainer, set up the one way this kit uses it."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.loggers.logger import Logger

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import TrainerConfig
from fvl_lightning.training.checkpointing.files import CheckpointFiles
from fvl_lightning.training.distributed.strategies import build_strategy


def check_machine(config: TrainerConfig) -> None:
    """ConfigError where the experiment asks for what this machine does not have."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present.get(config.accelerator, True):
        raise ConfigError(f"trainer.accelerator: this machine has no {config.accelerator} device; take auto or cpu")
    if config.cpu_offload and (config.accelerator == "cpu" or not present["cuda"]):
        raise ConfigError("trainer.cpu_offload: without a GPU all is in main memory anyway, take false")
    compiler = os.environ.get("CXX", "g++")
    if config.compile and shutil.which(compiler) is None:
        raise ConfigError(f"trainer.compile: it needs a C++ compiler, and there is no {compiler}; take []")


def build_trainer(config: TrainerConfig, folder: Path, loggers: list[Logger], callbacks: list[Callback]) -> Trainer:
    """Steps, not epochs; logging, progress and checkpoints through our callbacks."""
    plugins: list[Any] = [CheckpointFiles(config.checkpoint_in_background)]
    if config.world_size > 1:
        plugins.append(TorchElasticEnvironment())
    return Trainer(
        accelerator=config.accelerator,
        strategy=build_strategy(config),
        devices=config.devices,
        num_nodes=config.nodes,
        inference_mode=not config.sharded,  # what a rank gathers in it could not be trained on afterwards
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
        plugins=plugins,
        enable_checkpointing=True,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
