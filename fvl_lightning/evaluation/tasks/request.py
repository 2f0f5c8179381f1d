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
    """Runs and model folders; a name in tables and files is what was written here."""
    tasks: Sequence[TaskConfig]
    output: Path
    limit: int | None = None
    """The largest number of questions of a task, spread evenly."""
    variations: Sequence[str] = ()
    """Names of the controls and corruptions under which each task is asked, too."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """{name: file of samples} of models that were asked elsewhere; each is of one of the tasks."""
    precision: str = "32-true"
    accelerator: str = "auto"
    adapter: str | None = None
    plugins: Sequence[str] = ()


def default_output(tasks: Sequence[TaskConfig]) -> Path:
    """Returns the folder of an evaluation on these tasks."""
    return OUTPUT / file_name("+".join(task.name for task in tasks))[:80]


def named_files(options: Sequence[str]) -> dict[str, Path]:
    """Returns {name: file} of options NAME=FILE; without a name, that of the file.

    Raises:
        ConfigError: there is no such file, or two have one name.
    """
    files: dict[str, Path] = {}
    for option in options:
        name, equals, file = option.rpartition("=")
        path = Path(file).expanduser()
        name = name if equals else path.stem
        if not path.is_file():
            raise ConfigError(f"--from: there is no file {path}")
        if name in files:
            raise ConfigError(f"--from: {name} is {files[name]} and {path}, write <another name>={path}")
        files[name] = path
    return files


def file_name(text: str) -> str:
    """Returns a name for files that a text gives; other texts may give the same one."""
    return re.sub(r"[^\w.+-]+", "_", text).strip("._") or "model"
