"""A comparison's MLflow run and the runs below it: what they show is true of the newest configuration."""

import json
import shutil
from collections.abc import Callable
from math import isnan
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from fvl_lightning.comparison.cell import Cell
from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.comparison.result_files.cell import CellSpec
from fvl_lightning.comparison.tracking import PARENT, mark_current, read_parent, tracked_parent
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.experiment import TrackingConfig
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.tracking.links import CURRENT_TAG
from fvl_lightning.tracking.mlflow_sync import RunDescription, send_run
from fvl_lightning.tracking.tracker import Tracker

NOTE = "mlflow.note.content"
Start = Callable[..., Tracker]


@pytest.fixture
def tracking(tmp_path: Path, empty_store: Path) -> TrackingConfig:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return TrackingConfig(uri=f"sqlite:///{tmp_path / 'mlflow.db'}", experiment="shapes")


@pytest.fixture
def client(tracking: TrackingConfig) -> MlflowClient:
    return MlflowClient(tracking_uri=tracking.uri)


@pytest.fixture
def start(tmp_path: Path, tracking: TrackingConfig) -> Start:
    def started(fresh: bool = False, error: BaseException | None = None, **changes: Any) -> Tracker:
        with tracked_parent(ComparisonConfig(**changes), tracking, tmp_path / "runs", fresh) as tracker:
            if error is not None:
                raise error
        return tracker

    return started


def reported(tracker: Tracker, verdict: str = "better") -> None:
    """Leaves what a report leaves."""
    tracker.log_results({"score/gated": 0.5, "p_holm/gated": 0.01})
    hash_ = tracker.tags()["fvl.config_hash"]
    tracker.set_tags({"fvl.verdict.gated": verdict, NOTE: "gated wins", "fvl.reported": hash_})


def test_results_of_another_configuration_are_removed_at_once(start: Start, client: MlflowClient) -> None:
    first = start()
    reported(first)
    assert start().run_id == first.run_id
    assert client.get_run(first.run_id).data.tags[NOTE] == "gated wins", "the same configuration"
    with pytest.raises(DataError):
        start(seeds=[0, 1], error=DataError("gated with seed 1 is <b>gone</b>\nmore"))
    run = client.get_run(first.run_id)
    assert run.info.status == "FAILED"
    assert run.data.tags[NOTE] == "**Failed:** gated with seed 1 is &lt;b>gone&lt;/b>"
    assert "fvl.verdict.gated" not in run.data.tags
    assert all(map(isnan, run.data.metrics.values()))
    assert (run.data.tags["fvl.seeds"], "fvl.seed" in run.data.tags) == ("0, 1", False)
    with pytest.raises(KeyboardInterrupt):
        start(seeds=[0, 1], error=KeyboardInterrupt())
    run = client.get_run(first.run_id)
    assert (run.info.status, run.data.tags[NOTE].split(".")[0]) == ("KILLED", "**Stopped")


def test_a_fresh_start_retires_the_earlier_run(start: Start, client: MlflowClient, tracking: TrackingConfig) -> None:
    first = start()
    client.set_terminated(first.run_id, "KILLED")
    child = Tracker.start(tracking.uri, "shapes", "cell", {CURRENT_TAG: "true"}, parent_run_id=first.run_id)
    second = start(fresh=True)
    marks = [client.get_run(run.run_id).data.tags[CURRENT_TAG] for run in (first, child, second)]
    assert marks == ["false", "false", "true"]
    assert client.get_run(first.run_id).info.status == "KILLED", "as it ended"


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"store": 1, "run_id": "x"}', '{"store": ["a", "b"]}'])
def test_a_damaged_name_of_the_run_is_no_name(content: str, start: Start, tmp_path: Path) -> None:
    first = start()
    (tmp_path / "runs" / PARENT).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match="missing or damaged"):
        read_parent(tmp_path / "runs")
    assert start().run_id != first.run_id


def test_runs_of_another_configuration_are_not_current(
    start: Start, tracking: TrackingConfig, client: MlflowClient, tmp_path: Path
) -> None:
    """Cell a is finished, cell b trains; each has an earlier run; both share an encoder."""
    parent = start(name="demo")
    cells = [
        Cell(arm, 0, tmp_path / arm, CellSpec(stages=[{"name": arm}], tags={"fvl.comparison": "demo"}))
        for arm in ("a", "b")
    ]

    def child(name: str, cell: str, comparison: str = "demo") -> tuple[RunFolder, RunDescription]:
        tags = {"fvl.comparison": comparison, "fvl.cell": cell, CURRENT_TAG: "true", "fvl.stage": "language"}
        description = RunDescription(
            tracking.uri, "shapes", name, name, parent.run_id, tags, {}, {},
            {"name": "demo", "digest": "0", "source": "shards"},
        )  # fmt: skip
        folder = tmp_path / name
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps({"mlflow_run_id": send_run(description, None, []).run_id}))
        return RunFolder(folder), description

    runs = {
        "a": child("a-new", "reused from another key"),
        "a earlier": child("a-old", cells[0].key),
        "b": child("b-new", cells[1].key),
        "b earlier": child("b-old", "another"),
        "encoder": child("encoder", "none"),
        "tuning": child("trial", "none", "demo, validation"),
    }
    (tmp_path / "a").mkdir()
    result = {"cell": cells[0].key, "runs": {"finetune": str(runs["a"][0].path)}}
    (tmp_path / "a" / "result.json").write_text(json.dumps(result), encoding="utf-8")
    mark_current(parent, cells, {0: runs["encoder"][0]})

    def marks() -> dict[str, bool]:
        found = {name: client.get_run(run.info["mlflow_run_id"]) for name, (run, _) in runs.items()}
        return {name: run.data.tags[CURRENT_TAG] == "true" for name, run in found.items()}

    expected = dict.fromkeys(runs, True) | {"a earlier": False, "b earlier": False}
    assert marks() == expected
    for run, description in runs.values():
        send_run(description, run.info["mlflow_run_id"], [])
    assert marks() == expected, "`fvl sync` of an earlier run leaves the mark"
