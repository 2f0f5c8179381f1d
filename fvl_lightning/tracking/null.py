"""What stands in for a tracker where nothing is to be tracked."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fvl_lightning.tracking.limits import Status
from fvl_lightning.tracking.tracker import Tracker


class NullTracker(Tracker):
    """Takes everything a Tracker takes and keeps none of it; opens no store (tracking.enabled=false, other ranks)."""

    def __init__(self) -> None:
        super().__init__(client=None, uri="", experiment="", run_id="")

    def log_metrics(
        self, metrics: Mapping[str, Any], step: int | None = None, milliseconds: int | None = None
    ) -> None:
        """No effect."""

    def log_params(self, parameters: Mapping[str, Any]) -> None:
        """No effect."""

    def log_config(self, config: Mapping[str, Any]) -> None:
        """No effect."""

    def log_table(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """No effect."""

    def log_figure(self, figure: Any, name: str) -> None:
        """No effect."""

    def log_image(self, image: Any, name: str) -> None:
        """No effect."""

    def log_artifact(self, path: Path) -> None:
        """No effect."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """No effect."""

    def finish(self, status: Status) -> None:
        """No effect."""
