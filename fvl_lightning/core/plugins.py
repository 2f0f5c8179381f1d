"""Imports plugins: the modules and files that an experiment's `plugins:` names."""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from fvl_lightning.core.errors import ConfigError, UserError, first_line

OWN = "own"
"""In place of a plugin: those that a run names, or that lie in a model's folder."""
CODE = "__fvl_code__"
"""Module attribute with the hash of an imported file's code."""


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
    return str(file.resolve()) if file else name


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
    return getattr(imported, CODE, None) or _digest([Path(path)])


def _hash_of_module(name: str) -> str:
    file = Path(getattr(sys.modules.get(name), "__file__", None) or "")
    files = sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
    return _digest([one for one in files if one.is_file()])


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _module_name(file: Path) -> str:
    return f"fvl_plugin_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]}"


def _import_file(file: Path) -> None:
    """Imports a file, and again after it has been edited, for instance while a notebook runs."""
    name, code = _module_name(file), _digest([file])
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
