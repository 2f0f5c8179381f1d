"""The tracker of what is not tracked."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from fvl_lightning.tracking.limits import Status
from fvl_lightning.tracking.tracker import Tracker


class NullTracker(Tracker):
    """Takes everything that a Tracker takes and keeps none of it; opens no store (tracking.enabled=false)."""

    def __init__(self) -> None:
        super().__init__(client=None, uri="", run_id="")

    def log_results(self, results: Mapping[str, float]) -> None:
        """Does nothing."""

    def forget_results(self, but: Collection[str] = ()) -> None:
        """Does nothing."""

    def tags(self) -> dict[str, str]:
        """Returns no tags."""
        return {}

    def delete_tags(self, names: Iterable[str]) -> None:
        """Does nothing."""

    def set_experiment_tag(self, key: str, value: str) -> None:
        """Does nothing."""

    def children(self) -> list[Any]:
        """Returns no runs."""
        return []

    def tag_child(self, run_id: str, key: str, value: str) -> None:
        """Does nothing."""

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Does nothing."""

    def log_figure(self, figure: Any, name: str) -> None:
        """Does nothing."""

    def log_artifact(self, path: Path) -> None:
        """Does nothing."""

    def log_folder(self, folder: Path, name: str) -> None:
        """Does nothing."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Does nothing."""

    def finish(self, status: Status) -> None:
        """Does nothing."""
