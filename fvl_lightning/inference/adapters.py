"""Attaches the adapters of the option `--adapter` to a model."""

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


def attach_adapters(built: BuiltModel, options: Sequence[str] | None) -> list[str]:
    """Attaches the adapters of `--adapter` to a model and activates the first; returns all names, the model's own last.

    Raises:
        ConfigError: an option that names no adapter, or a name that is taken.
        DataError: an adapter that cannot be read, or that was trained on another base.
    """
    own = [ADAPTER] if has_adapters(built.model) else []
    names: list[str] = []
    for option in options or ():
        name, folder = parse_adapter(option)
        if name in names + own:
            raise ConfigError(f"--adapter {option}: the name {name} is taken, write <another name>={folder}")
        attach_adapter(built.model, folder, name)
        names.append(name)
    if names:
        use_adapter(built.model, names[0])
    return names + own


def parse_adapter(option: str) -> tuple[str, Path]:
    """Parses `<name>=<folder>` or `<folder>` into name and folder; a folder may be a run.

    Without a name, the adapter is named after its folder, or after its run.

    Raises:
        ConfigError: a name with other characters, or a folder without an adapter.
    """
    name, equals, reference = option.partition("=")
    path = Path(os.path.expanduser(reference if equals else option))
    of_run = path.name == "model" and (path.parent / "run.json").is_file()
    name = name if equals else (path.parent if of_run else path).resolve().name
    folder = path / "model" if (path / "run.json").is_file() else path
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ConfigError(f"--adapter {option}: expected <name>=<folder> with letters, digits, - and _ in the name")
    if not is_adapter_folder(folder):
        raise ConfigError(
            f"--adapter {option}: {folder} is no adapter folder (it has no adapter_config.json); pass a whole model "
            "as the model"
        )
    return name, folder
