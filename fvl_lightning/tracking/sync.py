"""Brings a store up to date with a run's folder: sends what it lacks, and nothing twice."""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

from fvl_lightning.core.config.yaml_text import write_yaml
from fvl_lightning.tracking.limits import (
    BATCH_METRICS,
    BATCH_PARAMETERS,
    DIGEST_LENGTH,
    PARAMETER_LENGTH,
    Status,
    batches,
    clean_key,
)
from fvl_lightning.tracking.logged_model import send_model
from fvl_lightning.tracking.store import open_store, resolve_uri, store_client, store_errors

Points = dict[tuple[str, int], tuple[float, int]]
"""{(metric, step): (value, milliseconds since 1970)}"""
KEY_TAG = "fvl.key"
"""By this tag a run is found again whose creation was not heard of, since the server or this process went away."""


@dataclass
class RunDescription:
    """What a store is told of a run besides its curves; it lies in the run's folder as tracking.json."""

    uri: str
    """The resolved address, so that it is the same store from any working directory."""
    experiment: str
    run_name: str
    key: str
    """Unlike that of any other run."""
    parent_run_id: str | None
    tags: dict[str, str]
    params: dict[str, Any]
    config: dict[str, Any]
    dataset: dict[str, str]
    """What it trains on: `name`, `digest` and `source`, a folder or URL."""
    evaluated: dict[str, str] = field(default_factory=dict)
    """Likewise, what its model was asked about; empty where it was asked nothing. `metric` names the scores on it:
    results called `<metric>/...`."""
    results: dict[str, float] = field(default_factory=dict)
    """Metrics without a step, such as scores."""
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Rows by name."""

    @classmethod
    def of(cls, uri: str, plain: Mapping[str, Any]) -> "RunDescription":
        """From plain containers, with the address resolved."""
        return cls(uri=resolve_uri(uri), **plain)

    def plain(self) -> dict[str, Any]:
        """As it is written to tracking.json."""
        return asdict(self)


@dataclass
class SyncReport:
    """The run in the store, and how much of it was missing there."""

    run_id: str
    points: int = 0
    others: int = 0
    """Tags, parameters, results, tables, the configuration, data sets, the model, the status."""


def send_run(
    told: RunDescription,
    run_id: str | None,
    journal: Iterable[Mapping[str, Any]],
    status: Status | None = None,
    ended: int | None = None,
    model: Path | None = None,
) -> SyncReport:
    """Sends what the store lacks.

    Args:
        told: what is known of the run.
        run_id: the run in the store; None where it is not known to have been created.
        journal: the lines of its journal.
        status: how it ended; None while it has not, or goes on again.
        ended: when, in milliseconds since 1970.
        model: the folder of the model that it kept, which stays where it is; None where there is none.

    Raises:
        DataError: the store cannot be reached or refuses; calling it again goes on from there.
    """
    experiment_id = open_store(told.uri, told.experiment)
    with store_errors(told.uri):
        client = store_client(told.uri)
        found = client.get_run(run_id) if run_id else _found_or_created(client, experiment_id, told)
        delivery = SyncReport(found.info.run_id)
        delivery.others += _send_description(client, found, told)
        journal, model_id = list(journal), None
        if model is not None:
            last = max((entry["step"] for entry in journal), default=0)
            model_id, sent = send_model(client, found, model, told.tags, told.params, last)
            delivery.others += sent
        delivery.others += _send_results(client, found, told, model_id)
        delivery.points = _send_missing_points(client, found, journal)
        delivery.others += _send_status(client, found, status, ended)
    return delivery


def points_of(entries: Iterable[Mapping[str, Any]]) -> Points:
    """Returns the points of a metrics log's lines; of a step that was logged twice the later one counts."""
    return {
        (clean_key(name), entry["step"] or 0): (float(value), entry["time"])
        for entry in entries
        for name, value in entry.items()
        if name not in ("step", "time", "note")
    }


def send_points(uri: str, run_id: str, points: Points) -> None:
    """Sends points to a run that lacks them.

    Raises:
        DataError: the store cannot be reached or refuses; some of the points may have arrived.
    """
    with store_errors(uri):
        _send_points(store_client(uri), run_id, points)


def _found_or_created(client: Any, experiment_id: str, told: RunDescription) -> Any:
    found = client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{told.key}'", max_results=1)
    return found[0] if found else client.create_run(experiment_id, run_name=told.run_name, tags={KEY_TAG: told.key})


def _send_description(client: Any, found: Any, told: RunDescription) -> int:
    from mlflow.entities import Param, RunTag
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    run_id, data = found.info.run_id, found.data
    tags = told.tags | {KEY_TAG: told.key}
    if told.parent_run_id:
        tags[MLFLOW_PARENT_RUN_ID] = told.parent_run_id
    new_tags = [RunTag(key, str(value)) for key, value in tags.items() if data.tags.get(key) != str(value)]
    for batch in batches(new_tags, BATCH_PARAMETERS):
        client.log_batch(run_id, tags=batch)
    params = {clean_key(key): str(value)[:PARAMETER_LENGTH] for key, value in told.params.items()}
    new_params = [Param(key, value) for key, value in params.items() if key not in data.params]
    for batch in batches(new_params, BATCH_PARAMETERS):
        client.log_batch(run_id, params=batch)
    present = {file.path for file in client.list_artifacts(run_id)}
    if "config.yaml" not in present:
        text = write_yaml(told.config)
        client.log_text(run_id, text, "config.yaml")
    new_tables = [name for name, rows in told.tables.items() if _send_table(client, run_id, present, name, rows)]
    return len(new_tags) + len(new_params) + len(new_tables) + ("config.yaml" not in present)


def _send_results(client: Any, found: Any, told: RunDescription, model_id: str | None) -> int:
    """The data sets, and the results as the run's and the model's; scores name the data they are of."""
    from mlflow.entities import DatasetInput, InputTag, Metric
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    inputs = [(_dataset(told.dataset), "training")]
    inputs += [(_dataset(told.evaluated), "evaluation")] if told.evaluated else []
    known = {(given.dataset.name, given.dataset.digest) for given in found.inputs.dataset_inputs}
    new = [
        DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, context)])
        for dataset, context in inputs
        if (dataset.name, dataset.digest) not in known
    ]
    if new:
        client.log_inputs(found.info.run_id, datasets=new)
    of = {} if model_id is None else {"model_id": model_id}
    scored = {"dataset_name": inputs[-1][0].name, "dataset_digest": inputs[-1][0].digest} if told.evaluated else {}
    results = {clean_key(key): value for key, value in told.results.items()}
    now = time.time_ns() // 1_000_000  # the store shows the newest value
    scores = f"{told.evaluated['metric']}/" if "metric" in told.evaluated else None
    metrics = [
        Metric(key, value, now, 0, **of, **(scored if scores and key.startswith(scores) else {}))
        for key, value in results.items()
        if found.data.metrics.get(key) != value
    ]
    for batch in batches(metrics, BATCH_METRICS):
        client.log_batch(found.info.run_id, metrics=batch)
    return len(new) + len(metrics)


def _dataset(told: Mapping[str, str]) -> Any:
    """As MLflow's pages and `mlflow.data.get_source` read it."""
    from mlflow.entities import Dataset

    kind = urlsplit(told["source"]).scheme or "local"
    return Dataset(told["name"], told["digest"][:DIGEST_LENGTH], kind, json.dumps({"uri": told["source"]}))


def _send_table(client: Any, run_id: str, present: set[str], name: str, rows: list[dict[str, Any]]) -> bool:
    """Keeps rows as `<name>.json`, which the interface shows side by side for several runs.

    Returns:
        Whether the run had no such table, or another one of that name.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    artifact = f"{name}.json"
    if artifact not in present:
        client.log_table(run_id, {column: [row.get(column) for row in rows] for column in columns}, artifact)
        return True
    # MLflow's log_table would append; this is the form in which it keeps a table.
    table = {"columns": columns, "data": [[row.get(column) for column in columns] for row in rows]}
    with TemporaryDirectory() as folder:
        if json.loads(Path(client.download_artifacts(run_id, artifact, folder)).read_text(encoding="utf-8")) == table:
            return False
    client.log_dict(run_id, table, artifact)
    return True


def _send_missing_points(client: Any, found: Any, journal: Iterable[Mapping[str, Any]]) -> int:
    run_id, points = found.info.run_id, points_of(journal)
    for key in {key for key, _ in points} & found.data.metrics.keys():
        for point in client.get_metric_history(run_id, key):
            points.pop((key, point.step), None)
    _send_points(client, run_id, points)
    return len(points)


def _send_points(client: Any, run_id: str, points: Points) -> None:
    from mlflow.entities import Metric

    metrics = [Metric(key, value, time, step) for (key, step), (value, time) in points.items()]
    for batch in batches(metrics, BATCH_METRICS):
        client.log_batch(run_id, metrics=batch)


def _send_status(client: Any, found: Any, status: Status | None, ended: int | None) -> int:
    if found.info.status == (status or "RUNNING"):
        return 0
    if status is None:
        client.update_run(found.info.run_id, status="RUNNING")
    else:
        client.set_terminated(found.info.run_id, status, ended)
    return 1
