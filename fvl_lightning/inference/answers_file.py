"""A JSON Lines file of answers that is written batch by batch and resumed after a stop.

Next to `answers.jsonl`, the file `answers.jsonl.settings.json` records what the answers belong to: the hash of the
model, the hash of the questions, and the sampling settings. Answers to anything else are never appended to.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fvl_lightning.core.atomic import atomic_write
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.jsonl import append_rows, read_rows
from fvl_lightning.core.weight_files import read_json


class AnswersFile:
    """Rows in the order of their questions.

    Attributes:
        done: rows that the file already holds.
        failed: those of them that hold an error instead of an answer.

    Raises:
        DataError: the file holds answers with other `settings`, or it cannot be written.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.done = self.failed = 0
        settings_path = path.with_name(f"{path.name}.settings.json")
        try:
            if settings_path.is_file():
                _check_settings(path, settings, settings_path)
                self._count()
            elif path.exists():
                raise DataError(f"--output: {path} exists without its {settings_path.name}; name another file")
            else:
                with atomic_write(settings_path) as tmp_path:
                    tmp_path.write_text(json.dumps(settings, indent=2), encoding="utf-8")
                path.touch()
        except OSError as error:
            raise DataError(f"--output: {path} cannot be written ({error.strerror})") from None

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Appends rows; they are in the file when this returns."""
        append_rows(self.path, rows)

    def _count(self) -> None:
        self.path.touch()
        try:
            for row in read_rows(self.path):
                self.done += 1
                self.failed += "error" in row
        except DataError as error:
            raise DataError(f"--output: {error}; name another file") from None


def _check_settings(path: Path, settings: dict[str, Any], settings_path: Path) -> None:
    try:
        before = read_json(settings_path)
    except DataError as error:
        raise DataError(f"{error}; name another --output") from None
    other = [f"{key} ({before.get(key)}, now {value})" for key, value in settings.items() if before.get(key) != value]
    if other:
        raise DataError(f"--output: {path} has answers of another {', '.join(other)}; name another file")
