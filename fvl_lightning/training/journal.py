"""Metrics as JSON Lines in the run's folder: readable without MLflow, and what the plots are drawn from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger


class Journal(Logger):
    """Appends one line per logged step."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

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
        """Appends `metrics` as the line of `step`."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
