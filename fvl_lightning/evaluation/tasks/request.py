"""The request of an evaluation: models, tasks, and how the models are asked."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.evaluation.tasks.config import TaskConfig

OUTPUT = Path("runs") / "evaluations"
"""Folder of evaluations without a folder of their own."""


@dataclass(frozen=True)
class EvaluationRequest:
    """Models and tasks, and how the models are asked."""

    models: Sequence[str]
    """Runs and model folders; tables and files name them as they are written here."""
    tasks: Sequence[TaskConfig]
    output: Path
    limit: int | None = None
    """The largest number of questions of a task, spread evenly."""
    variations: Sequence[str] = ()
    """Names of the controls and corruptions under which each task is asked, too."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """{name: file of samples} of models that another tool has asked; each file belongs to one task."""
    precision: str = "32-true"
    accelerator: str = "auto"
    adapter: str | None = None
    plugins: Sequence[str] = ()


def default_output(tasks: Sequence[TaskConfig]) -> Path:
    """Returns the folder of an evaluation on these tasks."""
    return OUTPUT / file_name("+".join(task.name for task in tasks))[:80]


def named_files(options: Sequence[str]) -> dict[str, Path]:
    """Returns {name: file} of options NAME=FILE; a file without a name is named by its file name.

    Raises:
        ConfigError: a file does not exist, or two files have the same name.
    """
    files: dict[str, Path] = {}
    for option in options:
        name, equals, file = option.rpartition("=")
        path = Path(file).expanduser()
        name = name if equals else path.stem
        if not path.is_file():
            raise ConfigError(f"--from: there is no file {path}")
        if name in files:
            raise ConfigError(f"--from: {name} is {files[name]} and {path}; write <another name>={path}")
        files[name] = path
    return files


def file_name(text: str) -> str:
    """Returns a text as a valid file name; different texts may have the same one."""
    return re.sub(r"[^\w.+-]+", "_", text).strip("._") or "model"
