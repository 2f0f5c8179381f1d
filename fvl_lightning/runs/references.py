"""References to a model: a run by its folder or MLflow id, or a model folder."""

import hashlib
import logging
from pathlib import Path

import torch

from datamodules.storage.content_hash import file_hashes
from fvl_lightning.core.device import compute_device
from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.core.weight_files import weights_hash
from fvl_lightning.modeling.adapters.folders import is_model_folder
from fvl_lightning.modeling.build import LoadedModel, load_model
from fvl_lightning.runs.folder import RunFolder

logger = logging.getLogger(__name__)

WEIGHTS = ".safetensors"


def finished_run(reference: str) -> RunFolder:
    """Opens a run; ConfigError if it has no model yet."""
    run = RunFolder.open(reference)
    run.check_finished()
    return run


def model_folder(reference: str) -> Path:
    """Returns the folder of a model that writes answers: `reference` itself, or that of a finished run.

    The plugins of the run are imported.

    Raises:
        DataError: `reference` is neither a model folder nor a run.
        ConfigError: the run is not finished, or trains an encoder alone.
    """
    folder = Path(reference)
    if is_model_folder(folder):
        return folder
    run = finished_run(reference)
    check_answers(run)
    check_model(run)
    run.experiment()  # imports the run's plugins
    return run.model


def check_model(run: RunFolder) -> None:
    """Checks that the files of a run's model are those that it saved; an earlier version recorded no hashes of them.

    A file of text that was edited, or any that is gone, causes a warning: its reader finds what is wrong.

    Raises:
        DataError: weights are damaged or edited.
    """
    recorded = run.info.get("files") or {}
    found = file_hashes(run.model) if recorded and run.model.is_dir() else {}
    for name in (name for name, content in recorded.items() if found.get(name) != content):
        if name in found and name.endswith(WEIGHTS):
            raise DataError(
                f"{run.model / name} is not what the run saved: it is damaged or edited; `fvl export {run.path} OUT "
                "--checkpoint last` writes the model again"
            )
        problem = "damaged or edited" if name in found else "gone"
        logger.warning("%s is not what the run saved: it is %s", run.model / name, problem)


def check_answers(run: RunFolder) -> None:
    """Raises ConfigError if the run trains an encoder alone."""
    if run.info["stage"] == "encoder_pretrain":
        raise ConfigError(f"{run.path} is an encoder without a language model; name a run of a later stage")


def answering_model(reference: str, device: torch.device | None = None) -> LoadedModel:
    """Loads a model that writes answers.

    Args:
        reference: see model_folder, whose errors are raised.
        device: where it computes; None for the GPU if there is one.
    """
    device = device or compute_device()
    loaded = load_model(model_folder(reference))
    say_what_it_has_seen(loaded, reference)
    loaded.model.to(device)
    return loaded


def say_what_it_has_seen(loaded: LoadedModel, reference: str) -> None:
    """Logs a warning if the model was trained on captions alone."""
    if loaded.processor.asking.get("captions"):
        logger.warning("%s was trained on captions alone: it has seen images and captions, but no question", reference)


def start_drawing(seed: int | None) -> None:
    """Seeds the sampling of answers; None takes another seed each time."""
    if seed is None:
        torch.seed()
    else:
        torch.manual_seed(seed)


def model_hash(loaded: LoadedModel) -> str:
    """Returns a hash of the weights, and of how the processor turns a conversation into tokens and pixels."""
    # The dtype is not part of the hash of the weights, and the same weights give other answers in another dtype.
    weights = f"{weights_hash(loaded.model.state_dict())} {loaded.model.dtype}"
    tokenizer = loaded.tokenizer.backend_tokenizer.to_str()
    parts = [weights, loaded.processor.to_json_string(), loaded.tokenizer.chat_template, tokenizer]
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]
