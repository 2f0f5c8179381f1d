"""Imports the plugins that somebody names for a model that is opened."""

from collections.abc import Sequence
from pathlib import Path

from fvl_lightning.core.plugins import OWN, import_plugin
from fvl_lightning.modeling.adapters.folders import base_of, is_adapter_folder, is_model_folder
from fvl_lightning.modeling.plugin_record import import_copies
from fvl_lightning.runs.folder import RunFolder


def import_plugins_for(reference: str, plugins: Sequence[str] | None) -> None:
    """Imports plugins before a run or a model folder is opened.

    Args:
        reference: the run or model folder.
        plugins: files and modules; `own` for those that the run names, or that lie in the model's folder.

    Raises:
        ConfigError: a plugin cannot be imported, or the folder has no copy of one.
    """
    for plugin in plugins or ():
        if plugin != OWN:
            import_plugin(plugin, Path())
        elif is_model_folder(folder := Path(reference)):
            import_copies([folder, *([base_of(folder)] if is_adapter_folder(folder) else [])])
        else:
            for named in RunFolder.open(reference).config.get("plugins") or ():
                import_plugin(str(named), Path())
