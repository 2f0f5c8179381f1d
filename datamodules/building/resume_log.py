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
from typing import Any, BinaryIO, Self

from datamodules.building.source_state import State as SourceState
from datamodules.building.source_state import read_state
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
    places: list[float] | None = field(default_factory=list)
    """The different places by which samples have got their splits (splits.py); None where they are many."""


class ResumeLog:
    """The resume log of the build whose work folder is `folder`; one process at a time may hold it.

    Raises:
        DataError: another process holds it, or its content is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._lock = _locked(self.path)
        self.settings, self.sources, self.state = self._read()

    def begin(self, settings: Mapping[str, Any], sources: SourceState) -> None:
        """Starts the log anew with the settings and the state of the source's files as its first line."""
        self.settings, self.sources, self.state = settings, sources, State()
        os.truncate(self.path, 0)
        append_rows(self.path, [{**settings, "sources": sources}], durable=True)

    def add(self, split: str, shard: Shard) -> None:
        """Appends a line for a finished shard and the current `state`, which has the shard already."""
        state = self.state
        lengths = {name: asdict(length) for name, length in state.open.items()}
        line = {"split": split, "shard": asdict(shard), "position": state.position, "open": lengths}
        counts = {"refused": state.refused, "passed_over": state.passed_over, "places": state.places}
        append_rows(self.path, [{**line, **counts, "refused_bytes": state.refused_bytes}], durable=True)

    def close(self) -> None:
        """Closes the file, which releases the lock."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _read(self) -> tuple[Mapping[str, Any] | None, SourceState, State]:
        state = State()
        try:
            rows = list(read_rows(self.path))
            settings = dict(rows[0]) if rows else None
            sources = read_state(settings.pop("sources", {})) if settings else {}
            for line in rows[1:]:
                state.shards.setdefault(line["split"], []).append(Shard.read(line["shard"]))
                state.position = (int(line["position"][0]), int(line["position"][1]))
                state.open = {split: Length(**_numbers(length)) for split, length in line["open"].items()}
                state.refused, state.refused_bytes = _numbers(line["refused"]), int(line["refused_bytes"])
                state.passed_over = _numbers(line.get("passed_over", {}))
                places = line.get("places")
                state.places = None if places is None else [float(place) for place in places]
        except (DataError, ValueError, KeyError, TypeError, IndexError, AttributeError):
            raise DataError(f"{self.path} is damaged; delete {self.path.parent} and start the build again") from None
        return settings, sources, state


def refuse_running(folder: Path) -> None:
    """Raises DataError if another process is building in a work folder, which need not exist."""
    if folder.is_dir():
        _locked(folder / NAME).close()


def _locked(path: Path) -> BinaryIO:
    """Opens a resume log and locks it; DataError if another process has locked it."""
    path.touch()
    file = path.open("rb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise DataError(f"another process is building into {path.parent.parent} at this moment") from None
    except OSError as error:
        log.warning("%s cannot be locked (%s): start no second build of it", path, error.strerror)
    return file


def _numbers(fields: Mapping[str, Any]) -> dict[str, int]:
    return {name: int(number) for name, number in fields.items()}
