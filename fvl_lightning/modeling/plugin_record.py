"""The plugins of a model in its configuration: which code from outside the kit its components need.

`plugins` in config.json is a list with one entry per component from outside:

    {"slot": "fusion", "component": "film", "plugin": "film.py", "code": "<hash>"}

`plugin` is the name of a file, without its folder, or of a module. Loading a model imports none of them. A copy of a
file may lie in the model's folder, where `fvl export --plugins` puts it.
"""

import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fvl_lightning.core import registry
from fvl_lightning.core.errors import ConfigError, DataError, unknown_name
from fvl_lightning.core.plugins import OWN, import_plugin, plugin_hashes
from fvl_lightning.core.weight_files import read_json

logger = logging.getLogger(__name__)

Record = list[dict[str, Any]]
"""The entries of a configuration."""
KEYS = ("slot", "component", "plugin", "code")
KIT = ("fvl_lightning.", "datamodules.")


def record_of(chosen: Mapping[str, str]) -> Record:
    """Returns the entries for those of the components {slot: name} that are defined outside of the kit."""
    entries: Record = []
    for slot, name in chosen.items():
        component = registry.component(slot, name)
        if component.__module__.startswith(KIT):
            continue
        file = _file_of(component)
        named = file.name if file is not None and _is_single(component.__module__, file) else component.__module__
        code = next(iter(plugin_hashes([str(file)]).values())) if file is not None else None
        entries.append({"slot": slot, "component": name, "plugin": named, "code": code})
    return entries


def read_record(value: Any, where: str) -> Record:
    """Returns the entries of a configuration; DataError where they are none."""
    if value is None:
        return []
    wrong = f"{where}: plugins is not a list of {', '.join(KEYS)}"
    if not isinstance(value, list):
        raise DataError(wrong)
    for entry in value:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in KEYS[:3]):
            raise DataError(wrong)
    return value


def unknown_component(slot: str, name: str, record: Record, where: str) -> ConfigError:
    """Returns the error for a component of a model that is not registered: it names the plugin and how to import it."""
    for entry in record:
        if (entry["slot"], entry["component"]) == (slot, name):
            plugin = entry["plugin"]
            return ConfigError(
                f"{where}: the plugin {plugin} registers {slot} '{name}', and it is not imported; add `--plugins "
                f"{plugin}` (`--plugins {OWN}` for the copy in the model's folder), or in Python import_plugins("
                f"{plugin!r}) before the model is loaded"
            )
    error = unknown_name(slot, name, registry.names(slot), where)
    return ConfigError(f"{error}; if a file of your own registers it, add `--plugins FILE`")


def warn_of_other_code(record: Record, present: Record) -> None:
    """Logs a warning for each plugin whose code is not that with which the model was saved."""
    now = {(entry["slot"], entry["component"]): entry for entry in present}
    for entry in record:
        found = now.get((entry["slot"], entry["component"]))
        if found is not None and entry.get("code") and found["code"] != entry["code"]:
            logger.warning(
                "%s '%s': the code of %s is not that with which the model was saved (%s, now %s); the model may answer "
                "otherwise", entry["slot"], entry["component"], found["plugin"], entry["code"], found["code"],
            )  # fmt: skip


def copy_plugins(record: Record, folder: Path) -> list[str]:
    """Copies the files of imported plugins into a folder, and returns their names.

    Raises:
        ConfigError: a plugin is part of a package, which is installed and not copied.
    """
    copied: dict[str, None] = {}
    for entry in record:
        file = _file_of(registry.component(entry["slot"], entry["component"]))
        if not entry["plugin"].endswith(".py") or file is None:
            raise ConfigError(
                f"--plugins: {entry['plugin']} is a module of a package and cannot be copied; whoever uses the model "
                "installs the package"
            )
        shutil.copyfile(file, folder / entry["plugin"])
        copied[entry["plugin"]] = None
    return list(copied)


def import_copies(folders: Sequence[Path]) -> None:
    """Imports the plugins of a model from the copies in its folder, or in the next of `folders`.

    Raises:
        ConfigError: there is no copy, or it cannot be imported.
        DataError: config.json cannot be read.
    """
    config = next((folder / "config.json" for folder in folders if (folder / "config.json").is_file()), None)
    record = read_record(read_json(config).get("plugins"), str(config)) if config is not None else []
    for plugin in dict.fromkeys(entry["plugin"] for entry in record):
        name = Path(plugin).name
        copy = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if not plugin.endswith(".py"):
            import_plugin(plugin, folders[0])
        elif copy is None:
            raise ConfigError(f"--plugins {OWN}: {folders[0]} has no copy of {name}; write `--plugins PATH/{name}`")
        else:
            import_plugin(str(copy), Path())


def _file_of(component: type) -> Path | None:
    """Returns the file that defines a class; None for one that was typed in."""
    file = getattr(sys.modules.get(component.__module__), "__file__", None)
    return Path(file) if file else None


def _is_single(module: str, file: Path) -> bool:
    """Returns whether a module is a file by itself, which can be given to others, and was not installed."""
    return "." not in module and file.name != "__init__.py" and not {"site-packages", "dist-packages"} & {*file.parts}
