"""Answers as JSON Lines, written batch by batch, and gone on with where an earlier start stopped.

Beside `answers.jsonl` lies `answers.jsonl.settings.json`, which says what the answers are of: the hash of the model,
that of the questions, and how words were chosen. Answers of anything else are never appended to.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fvl_lightning.core.atomic import atomic_write
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.jsonl import append_rows, read_rows


class AnswersFile:
    """Rows in the order of their questions; `done` of them are there already, `failed` of these without an answer.

    Raises:
        DataError: the file has answers of something else than `settings`, or can't be written.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.done = self.failed = 0
        beside = path.with_name(f"{path.name}.settings.json")
        try:
            if beside.is_file():
                _check(path, settings, beside)
                self._count()
            elif path.exists():
                raise DataError(f"--output: {path} exists, and no {beside.name} beside it says of what; name another")
            else:
                with atomic_write(beside) as new:
                    new.write_text(json.dumps(settings, indent=2), encoding="utf-8")
                path.touch()
        except OSError as error:
            raise DataError(f"--output: {path} can't be written ({error.strerror})") from None

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Adds rows; they are in the file when this returns."""
        append_rows(self.path, rows)

    def _count(self) -> None:
        self.path.touch()
        try:
            for row in read_rows(self.path):
                self.done += 1
                self.failed += "error" in row
        except DataError as error:
            raise DataError(f"--output: {error}; name another file") from None


def _check(path: Path, settings: dict[str, Any], beside: Path) -> None:
    try:
        before = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError:
        raise DataError(f"{beside} is not valid JSON; name another --output") from None
    other = [f"{key} ({before.get(key)}, now {value})" for key, value in settings.items() if before.get(key) != value]
    if other:
        raise DataError(f"--output: {path} has answers of another {', '.join(other)}; name another file")
