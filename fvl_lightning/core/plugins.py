"""Imports plugins: the modules and files that an experiment's `plugins:` names.

A run names its plugins, and opening it imports them. Whoever copies a run from somebody else would thereby run that
person's code. So code that a RUN names is imported only if its content is known: a training on this account has used
it, or this process was asked to import it, in an experiment file or with `--plugins`.
"""

import hashlib
import importlib
import importlib.machinery
import importlib.util
import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fvl_lightning.core.errors import ConfigError, UserError, first_line
from fvl_lightning.core.jsonl import RowReader, append_rows

logger = logging.getLogger(__name__)

OWN = "own"
"""In place of a plugin: those that a run names, or that lie in a model's folder."""
CODE = "__fvl_code__"
"""Module attribute with the hash of an imported file's code."""
RECORD = Path("fvl_lightning", "plugins.jsonl")
"""In the state folder of the account: a line {"plugin": name, "code": hash} for each plugin of a training."""
_given: set[str] = set()
"""Hashes of the code that this process has imported as a plugin."""


def import_plugin(name: str, folder: Path) -> str:
    """Imports a module, or a .py file relative to the YAML's `folder` or the working directory.

    Returns:
        The module's name, or the file's absolute path.

    Raises:
        ConfigError: no such file, or the import fails.
    """
    file = plugin_file(name, folder)
    if name.endswith(".py") and file is None:
        raise ConfigError(f"plugins: no file {name} in {folder} or the working directory")
    try:
        _import_file(file) if file else importlib.import_module(name)
    except Exception as error:
        reason = first_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
        raise ConfigError(f"plugins: {name} could not be imported: {reason}") from error
    imported = str(file.resolve()) if file else name
    _given.update(plugin_hashes([imported]).values())
    return imported


def plugin_file(name: str, folder: Path) -> Path | None:
    """The .py file in `folder` or in the working directory that a plugin names; None for the name of a module."""
    paths = (folder / name, Path(name)) if name.endswith(".py") else ()
    return next((path for path in paths if path.is_file()), None)


def plugin_hashes(plugins: Iterable[str]) -> dict[str, str]:
    """Returns {plugin: hash of its code} for plugins named as `import_plugin` returns them.

    The hash covers the code of a file as it was imported, the file of a module, or all files of a package.
    """
    return {name: _hash_of_file(name) if name.endswith(".py") else _hash_of_module(name) for name in plugins}


def _hash_of_file(path: str) -> str:
    imported = sys.modules.get(_module_name(Path(path)))
    return getattr(imported, CODE, None) or digest([Path(path)])


def _hash_of_module(name: str) -> str:
    return digest(package_files(Path(getattr(sys.modules.get(name), "__file__", None) or "")))


def package_files(file: Path) -> list[Path]:
    """Returns the file of a module, or all files of the package that it is the __init__ of."""
    files = sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
    return [one for one in files if one.is_file()]


def digest(files: Iterable[Path]) -> str:
    """Returns a hash of the content of files."""
    found = hashlib.sha256()
    for file in files:
        found.update(hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()[:16]


def _module_name(file: Path) -> str:
    return f"fvl_plugin_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]}"


def _import_file(file: Path) -> None:
    """Imports a file, and again after it has been edited, for instance while a notebook runs."""
    name, code = _module_name(file), digest([file])
    if getattr(sys.modules.get(name), CODE, None) == code:
        return
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    setattr(module, CODE, code)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def record_path() -> Path:
    """Returns the account's record of plugins, in XDG_STATE_HOME or ~/.local/state."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / RECORD


def remember_plugins(hashes: Iterable[tuple[str, str]]) -> None:
    """Records the code of plugins with which a training begins, as pairs (plugin, hash); a warning says where it fails.

    Opening the run later, in another process, imports them again.
    """
    known = _known_code()
    new = [{"plugin": plugin, "code": code} for plugin, code in hashes if code not in known]
    if not new:
        return
    try:
        record_path().parent.mkdir(parents=True, exist_ok=True)
        append_rows(record_path(), new)
    except (OSError, RuntimeError) as error:  # without a home folder, a RuntimeError
        logger.warning(
            "%s cannot be written (%s): commands that open this run will ask for --plugins", RECORD, error
        )


def check_own_plugins(plugins: Any, run: str) -> None:
    """Checks that the plugins that a run names may be imported.

    Args:
        plugins: the value of `plugins` in the run's configuration.
        run: the run, as the message names it.

    Raises:
        ConfigError: the code of one of them is not known on this account.
    """
    names = plugins if isinstance(plugins, list) else []
    known = _known_code() | _given if names else set()
    for name in map(str, names):
        files = _files_of(name)
        if files and digest(files) not in known:
            raise ConfigError(
                f"{run} imports the plugin {name}, and no training on this account has used this code; read it, and "
                f"if you trust it, write `--plugins {name}`"
            )


def _known_code() -> set[str]:
    try:
        rows = RowReader(record_path(), lambda row: isinstance(row.get("code"), str)).rows()
        return {row["code"] for row in rows}
    except (OSError, RuntimeError):
        return set()


def _files_of(name: str) -> list[Path]:
    """Returns the files whose code a plugin is, without importing anything; none where there is no such plugin."""
    if name.endswith(".py"):
        file = plugin_file(name, Path())
        return [file] if file else []
    first, *others = name.split(".")
    try:
        spec = importlib.util.find_spec(first)
        for position, _ in enumerate(others, start=2):
            if spec is None:
                return []
            whole = ".".join([first, *others][:position])
            spec = importlib.machinery.PathFinder.find_spec(whole, spec.submodule_search_locations)
    except (ImportError, ValueError, AttributeError):
        return []
    return package_files(Path(spec.origin)) if spec is not None and spec.origin else []
