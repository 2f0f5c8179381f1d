"""A run in MLflow to which reports, figures and results are written; the curves of trainings come by mlflow_sync.py."""

import time
from collections.abc import Collection, Iterable, Mapping
from math import isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvl_lightning.core.config.yaml_text import write_yaml
from fvl_lightning.tracking.limits import BATCH_METRICS, BATCH_PARAMETERS, Status, batches, clean_key
from fvl_lightning.tracking.store import open_store, resolve_uri, store_client, store_errors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEARCH_PAGE = 500
"""Runs that one call of a search returns."""


class Tracker:
    """Writes one run, each call at once; made by `start`. Every method raises DataError where the store refuses."""

    def __init__(self, client: Any, uri: str, run_id: str) -> None:
        self._client, self._uri, self._run_id = client, uri, run_id

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
            run_name: the name of the run in the interface; a resumed run keeps its name.
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
                return cls(client, uri, run.info.run_id)
            client.update_run(run_id, status="RUNNING")
        tracker = cls(client, uri, run_id)
        tracker.set_tags(tags)
        return tracker

    @classmethod
    def of(cls, uri: str, experiment: str, run_id: str) -> "Tracker":
        """Returns the tracker of a run as it is, which is not started again; DataError where there is none."""
        open_store(uri, experiment)
        uri = resolve_uri(uri)
        with store_errors(uri):
            client = store_client(uri)
            client.get_run(run_id)
        return cls(client, uri, run_id)

    @property
    def run_id(self) -> str:
        """MLflow's id of the run."""
        return self._run_id

    def log_results(self, results: Mapping[str, float]) -> None:
        """Sets metrics without a step, shown as bars; a value that the store has already is not sent again."""
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000  # the store shows the newest value
        with store_errors(self._uri):
            known = self._client.get_run(self._run_id).data.metrics
            values = {clean_key(name): float(value) for name, value in results.items()}
            new = [Metric(key, value, now, 0) for key, value in values.items() if known.get(key) != value]
            for batch in batches(new, BATCH_METRICS):
                self._client.log_batch(self._run_id, metrics=batch)

    def forget_results(self, but: Collection[str] = ()) -> None:
        """Sets metrics to NaN, except those named in `but`: MLflow deletes none, and its pages draw no NaN."""
        with store_errors(self._uri):
            known = self._client.get_run(self._run_id).data.metrics
        kept = set(map(clean_key, but))
        self.log_results({key: nan for key, value in known.items() if key not in kept and isfinite(value)})

    def tags(self) -> dict[str, str]:
        """Returns the run's tags in the store."""
        with store_errors(self._uri):
            return dict(self._client.get_run(self._run_id).data.tags)

    def delete_tags(self, names: Iterable[str]) -> None:
        """Removes tags that the run has."""
        with store_errors(self._uri):
            for name in names:
                self._client.delete_tag(self._run_id, name)

    def set_experiment_tag(self, key: str, value: str) -> None:
        """Sets a tag of the run's experiment, over that of the same name."""
        with store_errors(self._uri):
            experiment = self._client.get_run(self._run_id).info.experiment_id
            self._client.set_experiment_tag(experiment, key, value)

    def children(self) -> list[Any]:
        """Returns MLflow's runs below this one."""
        query, found, token = f"tags.`mlflow.parentRunId` = '{self._run_id}'", [], None
        with store_errors(self._uri):
            experiment = self._client.get_run(self._run_id).info.experiment_id
            while True:
                page = self._client.search_runs([experiment], query, max_results=SEARCH_PAGE, page_token=token)
                found += page
                token = page.token
                if not token:
                    return found

    def tag_child(self, run_id: str, key: str, value: str) -> None:
        """Sets a tag of a run below this one."""
        with store_errors(self._uri):
            self._client.set_tag(run_id, key, value)

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Keeps a resolved configuration (plain containers) as the artifact config.yaml."""
        text = write_yaml(dict(config))
        with store_errors(self._uri):
            self._client.log_text(self._run_id, text, "config.yaml")

    def log_figure(self, figure: "Figure", name: str) -> None:
        """Keeps a matplotlib figure as the artifact `name`, such as loss.png."""
        with store_errors(self._uri):
            self._client.log_figure(self._run_id, figure, name)

    def log_artifact(self, path: Path) -> None:
        """Uploads a file as an artifact with the file's own name."""
        with store_errors(self._uri):
            self._client.log_artifact(self._run_id, str(path))

    def log_folder(self, folder: Path, name: str) -> None:
        """Uploads the files of a folder as artifacts in the folder `name`."""
        with store_errors(self._uri):
            self._client.log_artifacts(self._run_id, str(folder), name)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags on the run, over those of the same name."""
        from mlflow.entities import RunTag

        with store_errors(self._uri):
            for batch in batches(list(tags.items()), BATCH_PARAMETERS):
                self._client.log_batch(self._run_id, tags=[RunTag(key, str(value)) for key, value in batch])

    def finish(self, status: Status) -> None:
        """Marks the run as ended."""
        with store_errors(self._uri):
            self._client.set_terminated(self._run_id, status)
