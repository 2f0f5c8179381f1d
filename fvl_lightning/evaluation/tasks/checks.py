"""Checks of a task file that need none of its rows."""

from collections.abc import Iterable
from pathlib import Path

from fvl_lightning.core.component_sources.components import ConfigReader, source_check
from fvl_lightning.core.config.base_files import in_file
from fvl_lightning.core.config.choices import Choice, ConfigLookup, imported_config
from fvl_lightning.core.config.loading import choose
from fvl_lightning.core.config.yaml_text import plain, texts_of
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.evaluation.task_rows.prompts import Template
from fvl_lightning.evaluation.tasks.config import TaskConfig, TaskData


def check_task(task: TaskConfig) -> None:
    """Checks a task as far as possible without its rows.

    Raises:
        ConfigError: a field of options or answers is missing, or a prompt has a mistake.
    """
    fields = task.fields
    if task.answer.by == "likelihood" and not fields.choices:
        raise ConfigError("answer.by: likelihood compares options; name their fields in fields.choices")
    if fields.answers_as != "text" and not fields.choices:
        raise ConfigError(f"fields.answers_as: {fields.answers_as} needs options; name their fields in fields.choices")
    if not fields.answers:
        raise ConfigError("fields.answers: expected at least one field with reference answers, found none")
    for key, prompt in [("prompt", task.prompt), *(("paraphrases", prompt) for prompt in task.paraphrases)]:
        Template(prompt, key)


def check_metric(task: TaskConfig, origin: str, plugins: Iterable[str], folder: Path) -> None:
    """Checks name and options of the metric in its source file, which takes less time than an import.

    Args:
        task: the task.
        origin: the file in which its metric was written, or the command line.
        plugins: further files and modules that may have the metric.
        folder: the folder that plugin files are relative to.

    Raises:
        ConfigError: there is no such metric or option.
    """
    with source_check():
        metric_choice(task, origin, ConfigReader([*task.plugins, *plugins], folder))


def metric_choice(task: TaskConfig, origin: str = "", config_of: ConfigLookup = imported_config) -> Choice:
    """Returns the metric of a task with its options; ConfigError where there is no such metric or option."""

    def place(key: str) -> str:
        return f"metric{key and f'.{key}'}{in_file(origin)}"

    return choose("metric", plain(task.metric), place(""), place, texts_of(task.metric), config_of)


def listed_files(data: TaskData, key: str = "data") -> list[str]:
    """Returns the entries of `files` of the section `key`; ConfigError if one is not a string."""
    files = data.files
    entries = [files] if isinstance(files, str) else list(files or [])
    if not all(isinstance(entry, str) and entry for entry in entries):
        raise ConfigError(f"{key}.files: expected a path, a glob or a list of them, found {files!r}")
    return entries
