"""One run in MLflow, as a Lightning logger whose metrics are buffered: a step never waits for the store.

Resuming logs nothing twice. A resumed run repeats the steps after its last checkpoint, and their timings (on an
accelerator their losses too) come out different, so the store cannot recognise them as the same points. The tracker
therefore asks the store how far each metric has come and drops what lies before. Points keep their real times.
"""

import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning.pytorch.loggers import Logger
from torch import Tensor

from fvl_lightning.core.config.yaml_text import write_yaml
from fvl_lightning.core.errors import DataError
from fvl_lightning.tracking.limits import BATCH_METRICS, BATCH_PARAMETERS, PARAMETER_LENGTH, Status, batches, clean_key
from fvl_lightning.tracking.store import open_store, resolve_uri, store_client, store_errors

if TYPE_CHECKING:
    import numpy
    from matplotlib.figure import Figure
    from PIL.Image import Image

logger = logging.getLogger(__name__)

FLUSH_POINTS = 500
"""Buffered points that are written without waiting for FLUSH_SECONDS."""
FLUSH_SECONDS = 5.0
"""Points are written at the latest with the first call after this time."""
RETRY_SECONDS = 10.0
LONGEST_RETRY_SECONDS = 300.0
"""A store that failed is tried again after this time, twice as much after every further failure, up to the longest."""


class Entry(NamedTuple):
    """One call of log_metrics as it waits in the buffer; tensors are read when it is written."""

    milliseconds: int
    step: int | None
    values: dict[str, float | Tensor]


class Point(NamedTuple):
    """Where a metric stands in the store."""

    step: int
    value: float


class Tracker(Logger):
    """Writes one run. Made by `start`; on the first process only, the others take a NullTracker."""

    def __init__(self, client: Any, uri: str, experiment: str, run_id: str) -> None:
        super().__init__()
        self._client = client
        self._uri = uri
        self._experiment = experiment
        self._run_id = run_id
        self._buffer: list[Entry] = []
        self._points = 0
        self._flushed_at = time.monotonic()
        self._retry_at, self._pause = 0.0, 0.0
        self._latest: dict[str, Point] = {}
        self._parameters: set[str] = set()

    @classmethod
    def start(
        cls,
        uri: str,
        experiment: str,
        run_name: str,
        tags: Mapping[str, str],
        parent_run_id: str | None = None,
        run_id: str | None = None,
    ) -> "Tracker":
        """Starts a run, or goes on with an earlier one.

        Args:
            uri: the store (see open_store, which is called here).
            experiment: MLflow's group of runs.
            run_name: what the run is called in the interface; a resumed run keeps its name.
            tags: set on the run, over those of the same name.
            parent_run_id: makes this a child of that run.
            run_id: an earlier run to go on with, instead of a new one.

        Raises:
            DataError: the store cannot be opened, or holds no such run.
        """
        experiment_id = open_store(uri, experiment)
        uri = resolve_uri(uri)
        if parent_run_id:
            from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

            tags = {**tags, MLFLOW_PARENT_RUN_ID: parent_run_id}
        with store_errors(uri):
            client = store_client(uri)
            if run_id is None:
                run = client.create_run(experiment_id, run_name=run_name, tags=dict(tags))
                return cls(client, uri, experiment, run.info.run_id)
            tracker = cls(client, uri, experiment, run_id)
            tracker._resume()
        tracker.set_tags(tags)
        return tracker

    @property
    def run_id(self) -> str:
        """MLflow's id of the run."""
        return self._run_id

    @property
    def name(self) -> str:
        """The experiment's name (Lightning's word for it)."""
        return self._experiment

    @property
    def version(self) -> str:
        """The run's id (Lightning's word for it)."""
        return self._run_id

    def log_metrics(
        self, metrics: Mapping[str, float | Tensor], step: int | None = None, milliseconds: int | None = None
    ) -> None:
        """Buffers points; tensors with one element are read when the buffer is written, so no device waits here.

        With a step the point belongs to a curve, and is dropped where the curve has already passed that step. Without
        one it is a result, shown as a bar; repeating it with the same value has no effect. The time is that of the
        call unless `milliseconds` since 1970 say otherwise.
        """
        values = {key: value.detach() if isinstance(value, Tensor) else value for key, value in metrics.items()}
        self._buffer.append(Entry(milliseconds or time.time_ns() // 1_000_000, step, values))
        self._points += len(values)
        self.save()

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Lightning's dump of constructor arguments is left out: log_params and log_config say it better."""

    def save(self) -> None:
        """Writes the buffer when it is full or old. Lightning calls this after every log_metrics, so not always."""
        if self._points >= FLUSH_POINTS or time.monotonic() - self._flushed_at >= FLUSH_SECONDS:
            self._try_flush()

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Writes the buffer, so that a run killed after this checkpoint has every point up to it."""
        self._try_flush()

    def finalize(self, status: str) -> None:
        """Writes the buffer when a Lightning loop ends; the run goes on until `finish`."""
        self._try_flush()

    def flush(self) -> None:
        """Writes every buffered point.

        Raises:
            DataError: the store refuses; the points stay buffered.
        """
        if not self._buffer:
            return
        from mlflow.entities import Metric

        latest = dict(self._latest)
        metrics = []
        for milliseconds, step, values in self._buffer:
            for name, raw in values.items():
                key, value = clean_key(name), float(raw)
                if _is_news(latest.get(key), step, value):
                    latest[key] = Point(step or 0, value)
                    metrics.append(Metric(key, value, milliseconds, step or 0))
        with store_errors(self._uri):
            for batch in batches(metrics, BATCH_METRICS):
                self._client.log_batch(self._run_id, metrics=batch)
        self._latest = latest
        self._buffer.clear()
        self._points, self._pause, self._flushed_at = 0, 0.0, time.monotonic()

    def log_params(self, parameters: Mapping[str, Any]) -> None:
        """Sets parameters, {key: value}; values longer than 6000 characters are cut, config.yaml has them whole.

        MLflow cannot change a parameter, so a resumed run keeps the first value.
        """
        from mlflow.entities import Param

        cleaned = {clean_key(key): str(value)[:PARAMETER_LENGTH] for key, value in parameters.items()}
        fresh = [Param(key, value) for key, value in cleaned.items() if key not in self._parameters]
        with store_errors(self._uri):
            for batch in batches(fresh, BATCH_PARAMETERS):
                self._client.log_batch(self._run_id, params=batch)
        self._parameters |= set(cleaned)

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Keeps a resolved configuration (plain containers) as the artifact config.yaml."""
        text = write_yaml(dict(config))
        with store_errors(self._uri):
            self._client.log_text(self._run_id, text, "config.yaml")

    def log_table(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keeps rows as `<name>.json`, which the interface shows side by side for several runs.

        Columns are the union of the rows' keys. A table of the same name is replaced.
        """
        rows = list(rows)
        columns = list(dict.fromkeys(key for row in rows for key in row))
        artifact = f"{name}.json"
        with store_errors(self._uri):
            if any(file.path == artifact for file in self._client.list_artifacts(self._run_id)):
                # MLflow's log_table would append; this is the form in which it keeps a table.
                data = [[row.get(column) for column in columns] for row in rows]
                self._client.log_dict(self._run_id, {"columns": columns, "data": data}, artifact)
            else:
                table = {column: [row.get(column) for row in rows] for column in columns}
                self._client.log_table(self._run_id, table, artifact)

    def log_figure(self, figure: "Figure | Path", name: str) -> None:
        """Keeps a matplotlib figure, or an image file, as the artifact `name`, such as loss.png."""
        if isinstance(figure, Path):
            self.log_image(figure, name)
            return
        with store_errors(self._uri):
            self._client.log_figure(self._run_id, figure, name)

    def log_image(self, image: "Path | Image | numpy.ndarray", name: str) -> None:
        """Keeps a picture (a file, a Pillow image or an array [H, W, 3], uint8 or in [0, 1]) as the artifact `name`."""
        if isinstance(image, Path):
            from PIL import Image

            with Image.open(image) as opened:
                image = opened.copy()
        with store_errors(self._uri):
            self._client.log_image(self._run_id, image, artifact_file=name)

    def log_artifact(self, path: Path) -> None:
        """Keeps a file under its own name."""
        with store_errors(self._uri):
            self._client.log_artifact(self._run_id, str(path))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags on the run, over those of the same name."""
        from mlflow.entities import RunTag

        with store_errors(self._uri):
            for batch in batches(list(tags.items()), BATCH_PARAMETERS):
                self._client.log_batch(self._run_id, tags=[RunTag(key, str(value)) for key, value in batch])

    def finish(self, status: Status) -> None:
        """Writes what is buffered and marks the run as ended.

        Raises:
            DataError: the store refuses.
        """
        try:
            self.flush()
        finally:
            with store_errors(self._uri):
                self._client.set_terminated(self._run_id, status)

    def _try_flush(self) -> None:
        """A store that is busy or out of reach must neither end a training nor slow it down: the points wait."""
        if time.monotonic() < self._retry_at:
            return
        try:
            self.flush()
        except DataError as error:
            if not self._pause:
                logger.warning("metrics wait in the run's journal to be sent: %s", error)
            self._pause = min(self._pause * 2 or RETRY_SECONDS, LONGEST_RETRY_SECONDS)
            self._retry_at = time.monotonic() + self._pause

    def _resume(self) -> None:
        """Marks the run as running again and learns how far it has come."""
        data = self._client.get_run(self._run_id).data
        self._parameters = set(data.params)
        for key in data.metrics:
            last = max(self._client.get_metric_history(self._run_id, key), key=lambda metric: metric.step)
            self._latest[key] = Point(last.step, last.value)
        self._client.update_run(self._run_id, status="RUNNING")


def _is_news(latest: Point | None, step: int | None, value: float) -> bool:
    if latest is None:
        return True
    return value != latest.value if step is None else step > latest.step
