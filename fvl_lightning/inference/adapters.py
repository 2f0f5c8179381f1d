"""Adapters on the command line: the folder of the model under those of a training, and those a command is given."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.modeling.adapters.folders import (
    ADAPTER,
    attach_adapter,
    has_adapters,
    is_adapter_folder,
    use_adapter,
)
from fvl_lightning.modeling.build import BuiltModel

ADAPTER_HELP = "Adapter on the model: a run or a folder, or NAME=FOLDER."
ADAPTERS_HELP = f"{ADAPTER_HELP[:-1]}; again for several, of which the first is in use."


def attach_adapters(built: BuiltModel, words: Sequence[str] | None) -> list[str]:
    """Puts the adapters of `--adapter` words on a model, the first one in use; returns all names, its own last.

    Raises:
        ConfigError: a word that names none, or a name that is taken.
        DataError: an adapter that cannot be read, or that was trained on another base.
    """
    own = [ADAPTER] if has_adapters(built.model) else []
    names: list[str] = []
    for word in words or ():
        name, folder = adapter_word(word)
        if name in names + own:
            raise ConfigError(f"--adapter {word}: there is a {name} already, write <another name>={folder}")
        attach_adapter(built.model, folder, name)
        names.append(name)
    if names:
        use_adapter(built.model, names[0])
    return names + own


def adapter_word(word: str) -> tuple[str, Path]:
    """Name and folder of `<name>=<folder>`, or of a folder, which is called by its last part; a run's is the run's."""
    name, equals, reference = word.partition("=")
    path = Path(os.path.expanduser(reference if equals else word))
    of_run = path.name == "model" and (path.parent / "run.json").is_file()
    name = name if equals else (path.parent if of_run else path).resolve().name
    folder = path / "model" if (path / "run.json").is_file() else path
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ConfigError(f"--adapter {word}: expected <name>=<folder> with letters, digits, - and _ in the name")
    if not is_adapter_folder(folder):
        raise ConfigError(
            f"--adapter {word}: {folder} is no adapter's folder (it has no adapter_config.json); name a whole model "
            "as the model"
        )
    return name, folder


