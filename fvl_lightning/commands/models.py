"""What a command may call a model: a run by its folder or MLflow id, or a model folder."""

import hashlib
from pathlib import Path

import torch

from fvl_lightning.commands.train import is_model_folder
from fvl_lightning.core.config import check_config
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.modeling.build import Loaded, load_model
from fvl_lightning.training.run_folder import RunFolder
from fvl_lightning.training.weights import weights_hash

MODEL_HELP = "Run (folder or MLflow id), or a model folder, as `fvl import` makes it."


def finished_run(reference: str) -> RunFolder:
    """The run; ConfigError where it has no model yet."""
    folder = RunFolder.open(reference)
    if not folder.finished:
        raise ConfigError(f"{folder.path} is {folder.info.get('status')}, it has no model yet; `--resume` finishes it")
    return folder


def answering_model(reference: str) -> Loaded:
    """A model that writes answers, on the GPU where there is one.

    Raises:
        ConfigError: an unfinished run, or one of an encoder alone.
        DataError: neither a run nor a model folder.
    """
    folder = Path(reference)
    if not is_model_folder(folder):
        run = finished_run(reference)
        if run.info["stage"] == "encoder_pretrain":
            raise ConfigError(f"{run.path} is an encoder without a language model; name a run of a later stage")
        check_config(ExperimentConfig, run.config)  # imports the run's plugins
        folder = run.model
    loaded = load_model(folder)
    loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
    return loaded


def start_drawing(seed: int | None) -> None:
    """What is sampled from here on follows the seed; None for another one each time."""
    if seed is None:
        torch.seed()
    else:
        torch.manual_seed(seed)


def model_hash(loaded: Loaded) -> str:
    """Names a model by its weights, and by how its processor makes tokens and pixels of a conversation."""
    parts = [weights_hash(loaded.model.state_dict()), loaded.processor.to_json_string(), loaded.tokenizer.chat_template]
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]
