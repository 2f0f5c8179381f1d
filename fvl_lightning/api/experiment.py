"""Loads an experiment, and builds its stage and data for a Trainer of one's own."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.base import BatchData
from fvl_lightning.core.config.base_files import OVERRIDES
from fvl_lightning.core.config.choices import Choice
from fvl_lightning.core.config.loading import as_overrides, load_config
from fvl_lightning.core.errors import ConfigError, unknown_name
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.runs.adapter_base import attach_trainable_adapters
from fvl_lightning.runs.setup import build_training
from fvl_lightning.stages.base import Stage
from fvl_lightning.training.distributed.process_group import Ranks


class BuiltTraining(NamedTuple):
    """A LightningModule and a LightningDataModule, ready for `Trainer.fit(stage, datamodule=data)`."""

    stage: Stage
    """The LightningModule. `stage.model` is the model, `stage.tokenizer` its tokenizer."""
    data: BatchData
    """The LightningDataModule, connected to the model's image size and tokenizer."""

    def __repr__(self) -> str:
        return f"BuiltTraining(stage={type(self.stage).__name__}, data={type(self.data).__name__})"


def load_experiment(path: str | os.PathLike[str], *overrides: str | Mapping[str, Any]) -> ExperimentConfig:
    """Loads and checks an experiment file with its bases.

    Args:
        path: the YAML file.
        overrides: "key=value" as on the command line, or mappings {dotted key: value}; later ones win.

    Raises:
        ConfigError: a missing or malformed file, an unknown key or name, or a wrong type; one sentence with the place.
    """
    return load_config(ExperimentConfig, Path(path), as_overrides(overrides), OVERRIDES)


def checked(experiment: ExperimentConfig) -> ExperimentConfig:
    """Returns a checked copy of an experiment, whose fields may have been set since it was loaded.

    Raises:
        ConfigError: a path or anything else that is no experiment, a value that a field does not take, or an attribute
            that is no field.
    """
    if not isinstance(experiment, ExperimentConfig):
        raise ConfigError(f"expected an experiment, found {experiment!r}; load_experiment(path) makes one from a file")
    copy = experiment.with_overrides()
    _refuse_other_attributes(experiment, copy, "")
    return copy


def _refuse_other_attributes(config: Any, copy: Any, key: str) -> None:
    """Raises ConfigError for an attribute that a checked copy of a configuration lacks, such as a misspelt key."""
    if isinstance(config, Choice):
        if isinstance(copy, Choice) and dataclasses.is_dataclass(config.config):
            _refuse_other_attributes(config.config, copy.config, key)
        return
    for name, value in vars(config).items():
        inner = f"{key}.{name}" if key else name
        if name not in vars(copy) and not name.startswith("_"):
            known = [field.name for field in dataclasses.fields(config)]
            raise unknown_name("key", name, known, f"{inner} as it was set")
        if dataclasses.is_dataclass(value) and dataclasses.is_dataclass(vars(copy).get(name)):
            _refuse_other_attributes(value, vars(copy)[name], inner)


def build(experiment: ExperimentConfig) -> BuiltTraining:
    """Builds the stage with its initial weights and the data connected to it; trains and writes no run.

    The data is prepared on disk first: shards are indexed, the demo set is drawn. Weights named in `init_from` are
    loaded, adapters are attached, and the features of a frozen encoder are cached if `feature_cache` names a folder.

    Raises:
        ConfigError: components that do not fit each other, or adapters whose base is not one whole model.
        DataError: shards or weights that are missing or broken.
    """
    stage, data, parents = build_training(checked(experiment), Ranks())
    attach_trainable_adapters(stage, parents, None)
    return BuiltTraining(stage, data)
