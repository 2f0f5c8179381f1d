"""Checks of a task file that need none of its rows."""

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.evaluation.task_rows.prompts import Template
from fvl_lightning.evaluation.tasks.config import TaskConfig


def check_task(task: TaskConfig) -> None:
    """Checks what can be seen without the rows of a task.

    Raises:
        ConfigError: options are needed and no field names them, there are no answers, or a prompt has a mistake.
    """
    fields = task.fields
    if task.answer.by == "likelihood" and not fields.choices:
        raise ConfigError("answer.by: likelihood compares options, and fields.choices names no field with them")
    if fields.answers_as != "text" and not fields.choices:
        raise ConfigError(f"fields.answers_as: {fields.answers_as} names an option, and fields.choices names no field")
    if not fields.answers:
        raise ConfigError("fields.answers: it names no field with reference answers")
    for key, prompt in [("prompt", task.prompt), *(("paraphrases", prompt) for prompt in task.paraphrases)]:
        Template(prompt, key)


def listed_files(task: TaskConfig) -> list[str]:
    """Returns the entries of data.files; ConfigError where they are no texts."""
    files = task.data.files
    entries = [files] if isinstance(files, str) else list(files or [])
    if not all(isinstance(entry, str) and entry for entry in entries):
        raise ConfigError(f"data.files: expected a path, a glob or a list of them, found {files!r}")
    return entries
