"""Metrics as JSON Lines in the run's folder: the source of what MLflow gets, readable without it.

A line is `{"step": 10, "time": <milliseconds since 1970>, <metric>: <value>, ...}` or, for what is no number,
`{"step": 10, "time": ..., "note": {...}}`. What JSON has no number for is written as text: "NaN", "Infinity".
"""

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from lightning.pytorch.loggers.logger import Logger

from fvl_lightning.core.jsonl import RowReader, append_rows

logger = logging.getLogger(__name__)


NO_METRICS = {"step", "time", "note"}
"""The keys of a line that are no metrics."""
LIGHTNINGS_EPOCH = "epoch"
"""Lightning adds it to what `self.log` logs; it is left out, since the training data has no epochs."""
_NO_NUMBERS = ("NaN", "Infinity", "-Infinity")


class Follower(Protocol):
    """Sends what the metrics log has to an MLflow store."""

    def points_added(self, count: int) -> None:
        """Takes note of `count` new points in the log."""

    def sync_soon(self) -> None:
        """Sends what is new, unless the store has failed a moment ago."""


class JsonlLogger(Logger):
    """Appends one line per logged step; where the disk is full, the lines wait for the next one and training goes on.

    Args:
        follower: hears of every line, of checkpoints and of the end of the loop.
    """

    def __init__(self, path: Path, follower: Follower | None = None) -> None:
        super().__init__()
        self._path, self._follower = path, follower
        self._waiting: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        """The name Lightning asks every logger for."""
        return "metrics"

    @property
    def version(self) -> str:
        """Empty, since a run has one metrics log."""
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the configuration lies in the run's folder."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Appends `metrics` as a line of `step`."""
        metrics = {name: value for name, value in metrics.items() if name != LIGHTNINGS_EPOCH}
        self._append({"step": step, "time": _now()} | {name: _written(value) for name, value in metrics.items()})
        if self._follower is not None:
            self._follower.points_added(len(metrics))

    def note(self, step: int, **facts: Any) -> None:
        """Appends facts that are no metrics, for whoever reads the log."""
        self._append({"step": step, "time": _now(), "note": facts})

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Has the store brought up to date, so that a run killed after this checkpoint has every point up to it."""
        if self._follower is not None:
            self._follower.sync_soon()

    def finalize(self, status: str) -> None:
        """Has the store brought up to date at the end of the loop."""
        if self._follower is not None:
            self._follower.sync_soon()

    def _append(self, entry: dict[str, Any]) -> None:
        self._waiting.append(entry)
        try:
            append_rows(self._path, self._waiting)
        except OSError as error:
            if len(self._waiting) == 1:
                logger.warning("%s cannot be written (%s); its lines wait", self._path, error.strerror)
            return
        self._waiting.clear()


class MetricsReader:
    """Reads a metrics log that grows: every call of `new` returns what was logged since the one before.

    A line that a power cut or a person has damaged is left out, with a warning that counts such lines.
    """

    def __init__(self, path: Path) -> None:
        self._reader = RowReader(path, _is_entry)

    def new(self) -> list[dict[str, Any]]:
        """Returns the lines that were added."""
        entries = list(map(_read, self._reader.rows()))
        self._reader.say_skipped()
        return entries


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a metrics log, without damaged ones (see MetricsReader); none where there is no file."""
    return MetricsReader(path).new()


def _is_entry(row: dict[str, Any]) -> bool:
    """Returns whether a line has a step, and numbers or a note; the first versions wrote no time."""
    if not (_is_count(row.get("time", 0)) and "step" in row and (row["step"] is None or _is_count(row["step"]))):
        return False
    if not isinstance(row.get("note", {}), dict):
        return False
    return all(_is_metric(value) for name, value in row.items() if name not in NO_METRICS)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_metric(value: Any) -> bool:
    if isinstance(value, str):
        return value in _NO_NUMBERS
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**1000)  # more is no float


def _read(row: dict[str, Any]) -> dict[str, Any]:
    return {name: float(value) if isinstance(value, str) else value for name, value in row.items()}


def _now() -> int:
    return time.time_ns() // 1_000_000


def _written(value: Any) -> Any:
    """Returns a metric as JSON can hold it."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
