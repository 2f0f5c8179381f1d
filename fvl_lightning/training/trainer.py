"""Lightning's Trainer as this kit configures it."""

import os
import shutil
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.loggers.logger import Logger

from fvl_lightning.core.device import compute_device
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import TrainerConfig
from fvl_lightning.tracking.loggers.base import check_loggers
from fvl_lightning.training.callbacks.base import build_callbacks
from fvl_lightning.training.checkpointing.last_and_previous import CheckpointFiles
from fvl_lightning.training.distributed.strategies import build_strategy


def check_machine(config: TrainerConfig) -> None:
    """Raises ConfigError if this machine lacks a device, a compiler, or a logger or callback of the experiment."""
    check_loggers(config.loggers)
    build_callbacks(config.callbacks)
    device = compute_device(config.accelerator)
    if config.cpu_offload and device.type != "cuda":
        raise ConfigError("trainer.cpu_offload: without a GPU all is in main memory anyway, take false")
    compiler = os.environ.get("CXX", "g++")
    if config.compile and shutil.which(compiler) is None:
        raise ConfigError(f"trainer.compile: it needs a C++ compiler, and there is no {compiler}; take []")


def build_trainer(config: TrainerConfig, folder: Path, loggers: list[Logger], callbacks: list[Callback]) -> Trainer:
    """Returns a Trainer that counts steps rather than epochs; `callbacks` log, show progress and save checkpoints."""
    plugins: list[Any] = [CheckpointFiles(config.checkpoint_in_background)]
    if config.world_size > 1:
        plugins.append(TorchElasticEnvironment())
    return Trainer(
        accelerator=config.accelerator,
        strategy=build_strategy(config),
        devices=config.devices,
        num_nodes=config.nodes,
        inference_mode=not config.sharded,  # parameters gathered in inference mode could not be trained afterwards
        precision=config.precision,
        max_steps=config.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=config.accumulate,
        val_check_interval=min(config.validate_every, config.max_steps) * config.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=loggers,
        log_every_n_steps=config.log_every,  # for `self.log`; the kit's own metrics have their LogWindow
        callbacks=callbacks,
        plugins=plugins,
        enable_checkpointing=True,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
