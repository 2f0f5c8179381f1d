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
                self._read()
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
        # Half of a surrogate pair, which JSON may hold and UTF-8 may not, comes out as the escape it came in as.
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with self.path.open("ab") as file:
            file.write(lines.encode("utf-8", "backslashreplace"))

    def _read(self) -> None:
        """Counts the rows; what a killed process left of a line is cut off."""
        if not self.path.exists():
            self.path.touch()
        with self.path.open("r+b") as file:
            whole = 0
            for line in file:
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                self.done += 1
                self.failed += _is_error(self.path, self.done, line)
            file.truncate(whole)


def _is_error(path: Path, number: int, line: bytes) -> bool:
    try:
        return "error" in json.loads(line)
    except ValueError:
        raise DataError(f"--output: line {number} of {path} is not valid JSON; name another file") from None


def _check(path: Path, settings: dict[str, Any], beside: Path) -> None:
    try:
        before = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError:
        raise DataError(f"{beside} is not valid JSON; name another --output") from None
    other = [f"{key} ({before.get(key)}, now {value})" for key, value in settings.items() if before.get(key) != value]
    if other:
        raise DataError(f"--output: {path} has answers of another {', '.join(other)}; name another file")
