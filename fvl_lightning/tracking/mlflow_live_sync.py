"""Keeps an MLflow store up to date with a metrics log while a training writes it."""

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from fvl_lightning.core.errors import DataError
from fvl_lightning.tracking.metrics_log import MetricsReader
from fvl_lightning.tracking.mlflow_sync import SyncReport, points_of, send_points

logger = logging.getLogger(__name__)

SYNC_POINTS = 500
"""New points that are sent without waiting for SYNC_SECONDS."""
SYNC_SECONDS = 5.0
"""Seconds after which the next point is sent along with all that wait."""
RETRY_SECONDS = 10.0
MAX_RETRY_SECONDS = 300.0
"""Seconds until a store that failed is tried again: twice as many after every further failure, up to the maximum."""


class LiveSync:
    """Sends what a metrics log has and the store lacks, in batches at the end of a step; a JsonlLogger's follower.

    A store that is busy or out of reach neither ends a training nor slows it down: the points wait in the log.

    At first, and after every failure, everything of the run is compared with the store. Otherwise only the lines since
    the last time are sent. A resumed run repeats the steps after its last checkpoint, whose timings (on an accelerator
    their losses too) come out different; a metric's steps up to the last one that was sent are therefore left out.

    Args:
        log: the metrics log.
        uri: the resolved address of the store.
        sync_all: sends everything that the store lacks of the run; DataError where it cannot.
    """

    def __init__(self, log: Path, uri: str, sync_all: Callable[[], SyncReport]) -> None:
        self._log, self._uri, self._sync_all = log, uri, sync_all
        self._reader = MetricsReader(log)
        self._run_id: str | None = None
        self._last_steps: dict[str, int] = {}
        self._points = 0
        self._synced_at = time.monotonic()
        self._retry_at, self._pause = 0.0, 0.0

    def points_added(self, count: int) -> None:
        """Takes note of `count` new points in the log, and sends what waits if it is many or old."""
        self._points += count
        if self._points >= SYNC_POINTS or time.monotonic() - self._synced_at >= SYNC_SECONDS:
            self.sync_soon()

    def sync_soon(self) -> None:
        """Sends what is new; a failure is a warning, and nothing is tried during the pause after it."""
        if time.monotonic() < self._retry_at:
            return
        first = self._pause == 0
        try:
            self.sync()
        except DataError as error:
            if first:
                logger.warning("metrics wait in %s until the store can be reached: %s", self._log, error)

    def sync(self) -> None:
        """Sends what the store lacks.

        Raises:
            DataError: the store cannot be reached or refuses.
        """
        try:
            if self._run_id is None:
                self._send_all()
            else:
                self._send_new(self._run_id)
        except DataError:
            self._run_id = None
            self._pause = min(self._pause * 2 or RETRY_SECONDS, MAX_RETRY_SECONDS)
            self._retry_at = time.monotonic() + self._pause
            raise
        self._points, self._pause, self._synced_at = 0, 0.0, time.monotonic()

    def _send_all(self) -> None:
        self._reader = MetricsReader(self._log)
        points = points_of(self._reader.new())
        self._run_id = self._sync_all().run_id
        self._last_steps = {}
        self._note_sent(points)

    def _send_new(self, run_id: str) -> None:
        points = points_of(self._reader.new())
        new = {(key, step): point for (key, step), point in points.items() if step > self._last_steps.get(key, -1)}
        send_points(self._uri, run_id, new)
        self._note_sent(new)

    def _note_sent(self, points: Iterable[tuple[str, int]]) -> None:
        for key, step in points:
            self._last_steps[key] = max(step, self._last_steps.get(key, step))
