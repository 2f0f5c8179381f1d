"""The validation rows of a task: what a training may be judged on, and never a row that results are reported on."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from glob import glob
from pathlib import Path
from typing import Any

from datamodules.hub.address import HubAddress, is_hub
from datamodules.storage.remote import is_remote
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.evaluation.tasks.checks import listed_files
from fvl_lightning.evaluation.tasks.config import TaskConfig, TaskData

TEST = "test"
"""Name of the split that results are reported on, and the beginning of the names of its files."""


def on_validation(task: TaskConfig) -> TaskConfig:
    """Returns the task with its validation rows in place of its data.

    Raises:
        ConfigError: it has none; they are those of a split `test`; or they may be among the rows of its data.
    """
    rows = task.validation
    entries = listed_files(rows, "validation")
    if not entries:
        raise ConfigError(
            f"task {task.name} has no validation rows; name their files in `validation: {{files: ...}}` of its file"
        )
    for entry in entries:
        if why := _not_for_training(entry):
            raise ConfigError(f"task {task.name}, validation.files: {why}; name rows that no result is reported on")
    if (shared := shared_file(rows, task.data)) is not None:
        raise ConfigError(
            f"task {task.name}: {shared} is in data and in validation; name other files, or choose the rows by "
            "different values of one field in data.where and validation.where"
        )
    return replace(task, data=rows, validation=TaskData())


def shared_file(one: TaskData, other: TaskData) -> str | None:
    """Returns a file that may have rows of both; None where files or the values of a field keep them apart."""
    if _excluding(one.where, other.where):
        return None
    first, second = ([name for entry in listed_files(data) for name in _names(entry)] for data in (one, other))
    return next((name for name in first if any(_is_same(name, another) for another in second)), None)


def _not_for_training(entry: str) -> str | None:
    """Returns why a file may not be seen by a training; None if it may."""
    if is_hub(entry):
        split = HubAddress.parse(entry).split
        if split is None:
            return f"{entry} names no split; write hub:owner/name:config/split"
        return f"{entry} is the split {TEST}" if split == TEST else None
    named = [name for name in _names(entry) if re.split(r"[-_.]", Path(name).name)[0].lower() == TEST]
    return f"{named[0]} is of the split {TEST}" if named else None


def _names(entry: str) -> Sequence[str]:
    """Returns the addresses or absolute paths that an entry of `files` names."""
    if is_hub(entry) or is_remote(entry):
        return [entry]
    path = Path(entry)
    matches = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else map(Path, sorted(glob(entry)))
    return [str(match.resolve()) for match in matches] or [str(path.absolute())]


def _is_same(one: str, other: str) -> bool:
    if not (is_hub(one) and is_hub(other)):
        return one == other
    first, second = HubAddress.parse(one), HubAddress.parse(other)
    pairs = [(first.config, second.config), (first.split, second.split)]
    return first.dataset == second.dataset and all(left == right or None in (left, right) for left, right in pairs)


def _excluding(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Returns whether some field has different values in both conditions, so that no row fulfils both."""

    def values(wanted: Any) -> set[str]:
        return {str(value) for value in (wanted if isinstance(wanted, list) else [wanted])}

    return any(values(one[name]).isdisjoint(values(other[name])) for name in one.keys() & other.keys())
