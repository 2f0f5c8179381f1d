"""Imports files that register components."""

import os
from pathlib import Path

from fvl_lightning.core.plugins import import_plugin


def import_plugins(*plugins: str | os.PathLike[str]) -> None:
    """Imports the files or modules that register components of one's own, such as a model's fusion.

    A file that has changed since it was imported is imported again.

    Args:
        plugins: .py files, or names of modules.

    Raises:
        ConfigError: there is no such file or module, or its import fails.
    """
    for plugin in plugins:
        import_plugin(os.fspath(plugin), Path())
