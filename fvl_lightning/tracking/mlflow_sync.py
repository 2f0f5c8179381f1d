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
from fvl_lightning.tracking.links import CURRENT_TAG
from fvl_lightning.tracking.logged_model import send_model
from fvl_lightning.tracking.store import open_store, resolve_uri, store_client, store_errors

Points = dict[tuple[str, int], tuple[float, int]]
"""{(metric, step): (value, milliseconds since 1970)}"""
KEY_TAG = "fvl.key"
"""The tag that finds a run whose id this process never got, since it or the server ended while the run was created."""


@dataclass
class RunDescription:
    """Everything of a run that goes to a store, but its curves; lies in the run's folder as tracking.json."""

    uri: str
    """The resolved address, so that it is the same store from any working directory."""
    experiment: str
    run_name: str
    key: str
    """Identifies the run; no other one has it."""
    parent_run_id: str | None
    tags: dict[str, str]
    params: dict[str, Any]
    config: dict[str, Any]
    dataset: dict[str, str]
    """The training data: `name`, `digest` and `source`, a folder or URL."""
    evaluated: dict[str, str] = field(default_factory=dict)
    """The data on which the model was scored, in the same form; empty without scores. `metric` names the scores on it:
    results called `<metric>/...`."""
    results: dict[str, float] = field(default_factory=dict)
    """Metrics without a step, such as scores."""
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Rows by name."""

    @classmethod
    def of(cls, uri: str, plain: Mapping[str, Any]) -> "RunDescription":
        """Makes a description from plain containers; the address is resolved."""
        return cls(uri=resolve_uri(uri), **plain)

    def plain(self) -> dict[str, Any]:
        """Returns the content of tracking.json."""
        return asdict(self)


@dataclass
class SyncReport:
    """The run in the store, and the number of its entries that were missing there."""

    run_id: str
    points: int = 0
    others: int = 0
    """Tags, parameters, results, tables, the configuration, datasets, the model, the status."""


def send_run(
    description: RunDescription,
    run_id: str | None,
    entries: Iterable[Mapping[str, Any]],
    status: Status | None = None,
    ended: int | None = None,
    model: Path | None = None,
) -> SyncReport:
    """Sends what the store lacks.

    Args:
        description: everything but the curves.
        run_id: the run in the store; None where it may not have been created yet.
        entries: the lines of its metrics log.
        status: how it ended; None while it runs, also after a resume.
        ended: the time of its end, in milliseconds since 1970.
        model: the folder of its saved model, which stays where it is; None without a model.

    Raises:
        DataError: the store cannot be reached or refuses; calling it again goes on from there.
    """
    experiment_id = open_store(description.uri, description.experiment)
    with store_errors(description.uri):
        client = store_client(description.uri)
        run = client.get_run(run_id) if run_id else _found_or_created(client, experiment_id, description)
        report = SyncReport(run.info.run_id)
        report.others += _send_description(client, run, description)
        entries, model_id = list(entries), None
        if model is not None:
            last = max((entry["step"] or 0 for entry in entries), default=0)
            tags = {key: value for key, value in description.tags.items() if key != CURRENT_TAG}
            model_id, sent = send_model(client, run, model, tags, description.params, last)
            report.others += sent
        report.others += _send_results(client, run, description, model_id)
        report.points = _send_missing_points(client, run, entries)
        report.others += _send_status(client, run, status, ended)
    return report


def points_of(entries: Iterable[Mapping[str, Any]]) -> Points:
    """Returns the points of a metrics log's lines; of a step that was logged twice the later one counts."""
    return {
        (clean_key(name), entry["step"] or 0): (float(value), entry.get("time", 0))
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


def _found_or_created(client: Any, experiment_id: str, description: RunDescription) -> Any:
    key, name = description.key, description.run_name
    found = client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
    return found[0] if found else client.create_run(experiment_id, run_name=name, tags={KEY_TAG: key})


def _send_description(client: Any, run: Any, description: RunDescription) -> int:
    from mlflow.entities import Param, RunTag
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    run_id, data = run.info.run_id, run.data
    tags = description.tags | {KEY_TAG: description.key}
    if description.parent_run_id:
        tags[MLFLOW_PARENT_RUN_ID] = description.parent_run_id
    if CURRENT_TAG in data.tags:
        tags.pop(CURRENT_TAG, None)  # the comparison has marked the run since
    new_tags = [RunTag(key, str(value)) for key, value in tags.items() if data.tags.get(key) != str(value)]
    for batch in batches(new_tags, BATCH_PARAMETERS):
        client.log_batch(run_id, tags=batch)
    params = {clean_key(key): str(value)[:PARAMETER_LENGTH] for key, value in description.params.items()}
    new_params = [Param(key, value) for key, value in params.items() if key not in data.params]
    for batch in batches(new_params, BATCH_PARAMETERS):
        client.log_batch(run_id, params=batch)
    present = {file.path for file in client.list_artifacts(run_id)}
    if "config.yaml" not in present:
        text = write_yaml(description.config)
        client.log_text(run_id, text, "config.yaml")
    new_tables = [name for name, rows in description.tables.items() if _send_table(client, run_id, present, name, rows)]
    return len(new_tags) + len(new_params) + len(new_tables) + ("config.yaml" not in present)


def _send_results(client: Any, run: Any, description: RunDescription, model_id: str | None) -> int:
    """Sends the datasets, and the results for the run and for its model; scores name their dataset."""
    from mlflow.entities import DatasetInput, InputTag, Metric
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    inputs = [(_dataset(description.dataset), "training")]
    inputs += [(_dataset(description.evaluated), "evaluation")] if description.evaluated else []
    known = {(given.dataset.name, given.dataset.digest) for given in run.inputs.dataset_inputs}
    new = [
        DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, context)])
        for dataset, context in inputs
        if (dataset.name, dataset.digest) not in known
    ]
    if new:
        _log_inputs(client, run.info.run_id, new)
    of = {} if model_id is None else {"model_id": model_id}
    last, _ = inputs[-1]
    scored = {"dataset_name": last.name, "dataset_digest": last.digest} if description.evaluated else {}
    results = {clean_key(key): value for key, value in description.results.items()}
    now = time.time_ns() // 1_000_000  # the store shows the newest value
    scores = f"{description.evaluated['metric']}/" if "metric" in description.evaluated else None
    metrics = [
        Metric(key, value, now, 0, **of, **(scored if scores and key.startswith(scores) else {}))
        for key, value in results.items()
        if run.data.metrics.get(key) != value
    ]
    for batch in batches(metrics, BATCH_METRICS):
        client.log_batch(run.info.run_id, metrics=batch)
    return len(new) + len(metrics)


def _log_inputs(client: Any, run_id: str, inputs: list[Any]) -> None:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        client.log_inputs(run_id, datasets=inputs)
    except (MlflowException, SQLAlchemyError):
        # MLflow looks for a dataset and then adds it: another run may have added the same one in between.
        client.log_inputs(run_id, datasets=inputs)


def _dataset(facts: Mapping[str, str]) -> Any:
    """Returns a dataset as MLflow's pages and `mlflow.data.get_source` read it."""
    from mlflow.entities import Dataset

    kind = urlsplit(facts["source"]).scheme or "local"
    return Dataset(facts["name"], facts["digest"][:DIGEST_LENGTH], kind, json.dumps({"uri": facts["source"]}))


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


def _send_missing_points(client: Any, run: Any, entries: Iterable[Mapping[str, Any]]) -> int:
    run_id, points = run.info.run_id, points_of(entries)
    for key in {key for key, _ in points} & run.data.metrics.keys():
        for point in client.get_metric_history(run_id, key):
            points.pop((key, point.step), None)
    _send_points(client, run_id, points)
    return len(points)


def _send_points(client: Any, run_id: str, points: Points) -> None:
    from mlflow.entities import Metric

    metrics = [Metric(key, value, time, step) for (key, step), (value, time) in points.items()]
    for batch in batches(metrics, BATCH_METRICS):
        client.log_batch(run_id, metrics=batch)


def _send_status(client: Any, run: Any, status: Status | None, ended: int | None) -> int:
    if run.info.status == (status or "RUNNING"):
        return 0
    if status is None:
        client.update_run(run.info.run_id, status="RUNNING")
    else:
        client.set_terminated(run.info.run_id, status, ended)
    return 1
