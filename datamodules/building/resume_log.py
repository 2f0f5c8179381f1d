"""The progress file that a killed build resumes from: one line per finished shard, each synced to disk at once.

The first line has the build's settings. Every other line has a finished shard and the state of the build at that time:
the first row still to read, and the lengths of the open shards and of the log of refusals. A resumed build truncates
the files to these lengths, so that whatever was written after the last line is discarded.
"""

import fcntl
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from datamodules.storage.writer import Length, Shard
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.jsonl import append_rows, read_rows

log = logging.getLogger(__name__)

NAME = "journal.jsonl"

Position = tuple[int, int]
"""The number of a chunk, and of a row in it."""


@dataclass
class State:
    """The state of a build: its finished shards per split, and what it resumes from."""

    position: Position = (0, 0)
    shards: dict[str, list[Shard]] = field(default_factory=dict)
    open: dict[str, Length] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    passed_over: dict[str, int] = field(default_factory=dict)
    refused_bytes: int = 0


class ResumeLog:
    """The resume log of the build whose work folder is `folder`; one process at a time may hold it.

    Raises:
        DataError: another process holds it, or its content is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self.path.touch()
        self._lock = self.path.open("rb")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise DataError(f"another process is building into {folder.parent} at this moment") from None
        except OSError as error:
            log.warning("%s cannot be locked (%s): start no second build of it", self.path, error.strerror)
        self.settings, self.state = self._read()

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Starts the log anew with the settings as its first line."""
        self.settings, self.state = settings, State()
        os.truncate(self.path, 0)
        append_rows(self.path, [settings], durable=True)

    def add(self, split: str, shard: Shard) -> None:
        """Appends a line for a finished shard and the current `state`, which has the shard already."""
        state = self.state
        lengths = {name: asdict(length) for name, length in state.open.items()}
        line = {"split": split, "shard": asdict(shard), "position": state.position, "open": lengths}
        counts = {"refused": state.refused, "passed_over": state.passed_over}
        append_rows(self.path, [{**line, **counts, "refused_bytes": state.refused_bytes}], durable=True)

    def close(self) -> None:
        """Closes the file, which releases the lock."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _read(self) -> tuple[Mapping[str, Any] | None, State]:
        state = State()
        try:
            rows = list(read_rows(self.path))
            for line in rows[1:]:
                state.shards.setdefault(line["split"], []).append(Shard.read(line["shard"]))
                state.position = (int(line["position"][0]), int(line["position"][1]))
                state.open = {split: Length(**length) for split, length in line["open"].items()}
                state.refused, state.refused_bytes = line["refused"], line["refused_bytes"]
                state.passed_over = line.get("passed_over", {})
        except (DataError, ValueError, KeyError, TypeError, IndexError):
            raise DataError(f"{self.path} is damaged; delete {self.path.parent} and start the build again") from None
        return (rows[0] if rows else None), state
