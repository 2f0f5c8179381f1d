"""A table of the curves in the run folder."""

import csv
import io
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning.pytorch.loggers.logger import Logger

from fvl_lightning.core.atomic import atomic_write
from fvl_lightning.core.config.fields import number
from fvl_lightning.core.registry import register
from fvl_lightning.tracking.loggers.base import LoggedRun
from fvl_lightning.tracking.metrics_log import LIGHTNINGS_EPOCH, NO_METRICS, read_metrics


@register("logger", "csv")
class CsvLogger(Logger):
    """A file metrics.csv in the run folder: one row per step, one column per metric.

    The file is whole at any moment. A resumed run has the rows of all its starts, each step once.
    """

    @dataclass
    class Config:
        """Settings of the file."""

        seconds: float = number(10.0, at_least=0)
        """Least time between two writes; at a checkpoint and at the end the file is always written."""

    def __init__(self, config: Config, run: LoggedRun) -> None:
        super().__init__()
        self._path, self._seconds = run.folder / "metrics.csv", config.seconds
        self._rows: dict[int, dict[str, Any]] = {}
        self._next_write = 0.0
        for entry in read_metrics(run.folder / "metrics.jsonl"):
            if entry["step"] <= run.step and "note" not in entry:
                self._add({name: value for name, value in entry.items() if name not in NO_METRICS}, entry["step"])

    @property
    def name(self) -> str:
        """The name Lightning asks every logger for."""
        return "csv"

    @property
    def version(self) -> str:
        """Empty, since a run has one table."""
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing: config.yaml lies beside the table."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds values to the row of a step."""
        self._add(metrics, step or 0)
        if time.monotonic() >= self._next_write:
            self._write()

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Writes the file, so that it is never behind what a resume starts from."""
        self._write()

    def finalize(self, status: str) -> None:
        """Writes the file."""
        self._write()

    def _add(self, metrics: Mapping[str, Any], step: int) -> None:
        values = {name: value for name, value in metrics.items() if name != LIGHTNINGS_EPOCH}
        self._rows.setdefault(step, {}).update(values)

    def _write(self) -> None:
        started = time.monotonic()
        names = dict.fromkeys(name for row in self._rows.values() for name in row)
        text = io.StringIO()
        table = csv.DictWriter(text, ["step", *names], lineterminator="\n")
        table.writeheader()
        table.writerows({"step": step, **self._rows[step]} for step in sorted(self._rows))
        with atomic_write(self._path) as tmp_path:
            tmp_path.write_text(text.getvalue(), encoding="utf-8")
        # A long table takes at most a hundredth of the time.
        self._next_write = time.monotonic() + max(self._seconds, 100 * (time.monotonic() - started))
