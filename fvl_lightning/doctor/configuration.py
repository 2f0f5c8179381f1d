"""Checks the configuration, and imports nothing that takes long where it is wrong."""

from collections.abc import Iterator
from pathlib import Path

from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.doctor.finding import Finding


def check_configuration(path: Path, overrides: list[str], configs: list[ExperimentConfig]) -> Iterator[Finding]:
    """Loads configuration and plugins; appends the configuration to `configs`."""
    config = load_config(ExperimentConfig, path, overrides)
    if config.data is None or config.stage is None:
        raise ConfigError("stage, data: the experiment must name both, or there is no training to check")
    from fvl_lightning.tracking.loggers.base import check_loggers
    from fvl_lightning.training.callbacks.base import build_callbacks

    check_loggers(config.trainer.loggers)
    build_callbacks(config.trainer.callbacks)
    plugins = f", plugins {', '.join(config.plugins)}" if config.plugins else ""
    yield Finding("configuration", "ok", f"stage {config.stage.name}{plugins}")
    configs.append(config)
