"""Components of one's own: modules and files that an experiment's `plugins:` names."""

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path

from fvl_lightning.core.errors import ConfigError, first_line


def import_plugin(name: str, folder: Path) -> str:
    """Imports a module, or a .py file in the YAML's `folder` or the working one; its name, or the file's whole path."""
    file = next((path for path in (folder / name, Path(name)) if path.is_file()), None)
    if name.endswith(".py") and file is None:
        raise ConfigError(f"plugins: no file {name} in {folder} or the working directory")
    try:
        _import_file(file) if file and name.endswith(".py") else importlib.import_module(name)
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ConfigError(f"plugins: {name} could not be imported: {reason}") from error
    return str(file.resolve()) if file and name.endswith(".py") else name


def _import_file(file: Path) -> None:
    name = f"fvl_plugin_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
