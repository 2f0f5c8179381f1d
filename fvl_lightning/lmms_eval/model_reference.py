"""Finds the model that an argument of lmms-eval names."""

import re
from pathlib import Path

from huggingface_hub import snapshot_download

from fvl_lightning.core.errors import DataError, first_line

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
"""The files of a model; code is never downloaded."""


def local_model(pretrained: str) -> str:
    """Returns a path or a run's id unchanged, and the folder of a downloaded model for a hub id.

    Raises:
        DataError: the hub has no such model, or cannot be reached.
    """
    if Path(pretrained).exists() or not HUB_ID.fullmatch(pretrained):
        return pretrained
    try:
        return snapshot_download(pretrained, allow_patterns=list(MODEL_FILES))
    except Exception as error:  # the hub's client raises many classes
        raise DataError(
            f"pretrained={pretrained} is not a folder, and cannot be read from the hub: {first_line(error)}"
        ) from None
