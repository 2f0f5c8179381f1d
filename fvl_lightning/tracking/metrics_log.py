"""Metrics as JSON Lines in the run's folder: written before the tracker hears of them, readable without MLflow.

A line is `{"step": 10, "time": <milliseconds since 1970>, <metric>: <value>, ...}` or, for what is no number,
`{"step": 10, "time": ..., "note": {...}}`. What JSON has no number for is written as text: "NaN", "Infinity".
"""

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from lightning.pytorch.loggers.logger import Logger

logger = logging.getLogger(__name__)


_NO_NUMBERS = ("NaN", "Infinity", "-Infinity")


class Follower(Protocol):
    """What takes the points after the journal has them: a tracker."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None, milliseconds: int | None) -> None:
        """Takes points with the time at which the journal wrote them."""

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """A checkpoint was written."""

    def finalize(self, status: str) -> None:
        """The loop has ended."""


class JsonlLogger(Logger):
    """Appends one line per logged step. A disk that is full ends no training: the lines wait for the next one."""

    def __init__(self, path: Path, follower: Follower | None = None) -> None:
        super().__init__()
        self._path, self._follower = path, follower
        self._waiting: list[str] = []
        _drop_unfinished_line(path)

    @property
    def name(self) -> str:
        """The name Lightning asks every logger for."""
        return "journal"

    @property
    def version(self) -> str:
        """One journal per run."""
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the configuration lies beside the journal."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Appends `metrics` as a line of `step`, and hands them on."""
        milliseconds = time.time_ns() // 1_000_000
        self._append({"step": step, "time": milliseconds} | {name: _written(value) for name, value in metrics.items()})
        if self._follower is not None:
            self._follower.log_metrics(metrics, step, milliseconds)

    def note(self, step: int, **facts: Any) -> None:
        """Appends what is no metric, for who reads the journal."""
        self._append({"step": step, "time": time.time_ns() // 1_000_000, "note": facts})

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Handed on."""
        if self._follower is not None:
            self._follower.after_save_checkpoint(checkpoint_callback)

    def finalize(self, status: str) -> None:
        """Handed on."""
        if self._follower is not None:
            self._follower.finalize(status)

    def _append(self, entry: dict[str, Any]) -> None:
        self._waiting.append(json.dumps(entry) + "\n")
        size = self._path.stat().st_size if self._path.exists() else 0
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write("".join(self._waiting))
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(self._path, size)
            if len(self._waiting) == 1:
                logger.warning("%s cannot be written (%s); its lines wait", self._path, error.strerror)
            return
        self._waiting.clear()


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a journal, less one that a kill has left unfinished; none where there is no journal."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                entry = json.loads(line)
                yield {name: float(value) if value in _NO_NUMBERS else value for name, value in entry.items()}


def _written(value: Any) -> Any:
    """A metric as JSON takes it."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _drop_unfinished_line(path: Path) -> None:
    if path.is_file():
        text = path.read_bytes()
        if not text.endswith(b"\n"):
            os.truncate(path, text.rfind(b"\n") + 1)
