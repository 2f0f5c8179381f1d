"""Finds tasks: by name in the catalog of the package, or by the path of a file."""

import os
from collections.abc import Sequence
from pathlib import Path

from datamodules.hub.address import is_hub
from datamodules.storage.remote import is_remote
from fvl_lightning.core.config.base_files import COMMAND_LINE, read_layers
from fvl_lightning.core.config.loading import merge_layers
from fvl_lightning.core.config.places import origin_of
from fvl_lightning.core.config.yaml_text import plain, read_yaml
from fvl_lightning.core.errors import ConfigError, nearest, unknown_name
from fvl_lightning.evaluation.tasks.checks import check_metric, check_task, listed_files
from fvl_lightning.evaluation.tasks.config import TaskConfig

CATALOG, SUITES = (Path(__file__).with_name(folder) for folder in ("catalog", "suites"))
_YAML = ".yaml"


def task_names() -> list[str]:
    """Returns the names of the tasks in the catalog, sorted."""
    return _names(CATALOG)


def suite_names() -> list[str]:
    """Returns the names of the suites, sorted."""
    return _names(SUITES)


def suite(name: str) -> list[str]:
    """Returns the names of the tasks of a suite, in its order; ConfigError where there is no such suite."""
    if name not in suite_names():
        raise unknown_name("suite", name, suite_names(), "--suite")
    return list(plain(read_yaml((SUITES / f"{name}{_YAML}").read_text(encoding="utf-8")))["tasks"])


def find_task(
    name: str | Path, overrides: Sequence[str] = (), origin: str = COMMAND_LINE, plugins: Sequence[str] = ()
) -> TaskConfig:
    """Returns a task.

    Args:
        name: its name in the catalog, or the path of a YAML file, in which other paths are relative to it.
        overrides: "key=value" texts, such as data.files=textvqa/*.parquet, with paths relative to the working folder.
        origin: where the overrides were written, for messages.
        plugins: files and modules, besides those that it names, that may have its metric.

    Raises:
        ConfigError: there is no such task, or its file has a mistake.
    """
    path = _path_of(str(name))
    catalog = {known: _in_catalog(known) for known in task_names()}
    task = merge_layers(TaskConfig, read_layers(path, named=catalog), overrides, origin, path)
    task.name = task.name or path.stem
    for key, rows in {"data": task.data, "validation": task.validation}.items():
        folder = _folder(task, f"{key}.files", path)
        rows.files = [_resolved(entry, folder) for entry in listed_files(rows, key)]
        if rows.images:
            rows.images = _resolved(rows.images, _folder(task, f"{key}.images", path))
    try:
        check_task(task)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    check_metric(task, origin_of(task, "metric", str(path)), plugins, path.parent)
    return task


def _names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.iterdir() if path.suffix == _YAML)


def _in_catalog(name: str) -> Path:
    return CATALOG / f"{name}{_YAML}"


def _path_of(name: str) -> Path:
    if name in task_names():
        return _in_catalog(name)
    path = Path(os.path.expanduser(name))
    if path.suffix in (_YAML, ".yml") or os.sep in name or path.is_file():
        return path
    close = nearest(name, task_names())
    hint = f"; did you mean '{close}'?" if close else ""
    raise ConfigError(f"unknown task '{name}', expected a YAML file or one of {', '.join(task_names())}{hint}")


def _folder(task: TaskConfig, key: str, path: Path) -> Path:
    """Returns the folder that a path of the task is relative to: that of the file in which it was written."""
    written_in = Path(origin_of(task, key, str(path)))
    return written_in.parent if written_in.suffix in (_YAML, ".yml") else Path()


def _resolved(entry: str, folder: Path) -> str:
    return entry if is_hub(entry) or is_remote(entry) else str(folder / os.path.expanduser(entry))
