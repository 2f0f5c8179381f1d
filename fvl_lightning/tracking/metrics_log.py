"""Metrics as JSON Lines in the run's folder: written before the tracker hears of them, readable without MLflow.

A line is `{"step": 10, "time": <milliseconds since 1970>, <metric>: <value>, ...}` or, for what is no number,
`{"step": 10, "time": ..., "note": {...}}`. What JSON has no number for is written as text: "NaN", "Infinity".
"""

import logging
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from lightning.pytorch.loggers.logger import Logger

from fvl_lightning.core.jsonl import append_rows, read_rows

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
        self._waiting: list[dict[str, Any]] = []

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
        self._waiting.append(entry)
        try:
            append_rows(self._path, self._waiting)
        except OSError as error:
            if len(self._waiting) == 1:
                logger.warning("%s cannot be written (%s); its lines wait", self._path, error.strerror)
            return
        self._waiting.clear()


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the lines of a metrics log; none where there is no file.

    Raises:
        DataError: a line is not a JSON object.
    """
    for entry in read_rows(path):
        yield {name: float(value) if value in _NO_NUMBERS else value for name, value in entry.items()}


def _written(value: Any) -> Any:
    """A metric as JSON takes it."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
