"""One run in a real sqlite store: what is logged is there, once."""

import time
from pathlib import Path

import mlflow
import pytest
import yaml
from matplotlib.figure import Figure
from mlflow import MlflowClient
from PIL import Image

from fvl_lightning.core.errors import DataError
from fvl_lightning.tracking.limits import clean_key
from fvl_lightning.tracking.null import NullTracker
from fvl_lightning.tracking.provenance import provenance
from fvl_lightning.tracking.tracker import Tracker


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('tracker')}/mlflow.db"


@pytest.fixture
def tracker(uri: str) -> Tracker:
    return Tracker.start(uri, "shapes", "concat", {"stage": "pretrain"})


def points(uri: str, tracker: Tracker, key: str) -> list[tuple[int, float]]:
    """What the store holds of one metric."""
    history = MlflowClient(tracking_uri=uri).get_metric_history(tracker.run_id, key)
    return [(metric.step, metric.value) for metric in history]


def test_results_may_change(uri: str, tracker: Tracker) -> None:
    for value in (0.5, 0.5, 0.75):
        tracker.log_results({"accuracy": value})
        time.sleep(0.002)
    assert [value for _, value in points(uri, tracker, "accuracy")] == [0.5, 0.75]
    assert MlflowClient(tracking_uri=uri).get_run(tracker.run_id).data.metrics["accuracy"] == 0.75


def test_a_run_goes_on(uri: str, tracker: Tracker) -> None:
    tracker.log_results({"accuracy": 0.5})
    tracker.finish("KILLED")
    resumed = Tracker.start(uri, "shapes", "ignored", {"git_commit": "abc"}, run_id=tracker.run_id)
    client = MlflowClient(tracking_uri=uri)
    assert client.get_run(tracker.run_id).info.status == "RUNNING"
    resumed.log_results({"accuracy": 0.5})
    resumed.finish("FINISHED")
    run = client.get_run(tracker.run_id)
    assert points(uri, tracker, "accuracy") == [(0, 0.5)]
    assert (run.info.status, run.info.run_name, run.data.tags["git_commit"]) == ("FINISHED", "concat", "abc")


def test_a_store_that_refuses_is_one_sentence(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise mlflow.MlflowException("disk full\nand a traceback")

    monkeypatch.setattr(tracker._client, "log_batch", refuse)
    with pytest.raises(DataError, match="disk full") as raised:
        tracker.log_results({"loss": 1.0})
    assert "\n" not in str(raised.value)


def test_unknown_run(uri: str) -> None:
    with pytest.raises(DataError, match="no-such-run") as raised:
        Tracker.start(uri, "shapes", "x", {}, run_id="no-such-run")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("key", "clean"),
    [
        ("mass/caption", "mass/caption"),
        ("learning_rates[0]", "learning_rates_0_"),
        ("a=b, c", "a_b_ c"),
        ("/a//b/../c/", "a/b/c"),
        ("..", "_"),
        ("x" * 300, "x" * 250),
    ],
)
def test_keys_that_mlflow_takes(key: str, clean: str, uri: str, tracker: Tracker) -> None:
    assert clean_key(key) == clean
    tracker.log_results({key: 1.0})
    assert points(uri, tracker, clean) == [(0, 1.0)]


def test_children_know_their_parent(uri: str, tracker: Tracker) -> None:
    children = [
        Tracker.start(uri, "shapes", name, {"fusion": name}, parent_run_id=tracker.run_id) for name in ("gated", "mean")
    ]
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("shapes")
    found = client.search_runs([experiment.experiment_id], f"tags.mlflow.parentRunId = '{tracker.run_id}'")
    assert {run.info.run_id for run in found} == {child.run_id for child in children}
    assert {run.data.tags["fusion"] for run in found} == {"gated", "mean"}


def test_artifacts(uri: str, tracker: Tracker, tmp_path: Path) -> None:
    config = {"name": "finetune", "fusion": {"name": "gated"}, "betas": [0.9, 0.95], "text": "größer"}
    figure = Figure()
    figure.add_subplot().plot([1, 2, 3])
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    tracker.log_config(config)
    tracker.log_figure(figure, "loss.png")
    tracker.log_artifact(tmp_path / "red.png")
    client = MlflowClient(tracking_uri=uri)
    files = {file.path for file in client.list_artifacts(tracker.run_id)}
    assert files == {"config.yaml", "loss.png", "red.png"}
    assert yaml.safe_load(Path(client.download_artifacts(tracker.run_id, "config.yaml")).read_text("utf-8")) == config
    with Image.open(client.download_artifacts(tracker.run_id, "red.png")) as image:
        assert image.getpixel((0, 0)) == (255, 0, 0)


def test_provenance(uri: str, tracker: Tracker) -> None:
    tags = provenance({"fusion": {"name": "gated", "hidden": 8}, "seed": 3, "trainer": {"max_steps": 1}}, "abc123")
    tracker.set_tags(tags)
    kept = MlflowClient(tracking_uri=uri).get_run(tracker.run_id).data.tags
    assert tags.items() <= kept.items()
    assert (tags["fvl.config_hash"], tags["fvl.fusion"], tags["fvl.seed"]) == ("abc123", "gated", "3")
    assert tags["fvl.git_commit"] == tags.get("mlflow.source.git.commit", "unknown")
    assert tags["fvl.git_dirty"] in ("true", "false", "unknown")
    assert "fvl.trainer" not in tags


def test_provenance_outside_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fvl_lightning.__file__", str(tmp_path / "__init__.py"))
    assert provenance({}, "abc123")["fvl.git_commit"] == "unknown"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance({}, "abc123")["fvl.git_dirty"] == "unknown"


def test_null_tracker_takes_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    null = NullTracker()
    null.log_results({"loss": 1.0})
    null.log_config({"a": 1})
    null.log_figure(Figure(), "figure.png")
    null.log_artifact(tmp_path / "missing.png")
    null.set_tags({"a": "1"})
    null.finish("FINISHED")
    assert null.run_id == ""
    assert not list(tmp_path.iterdir())


def test_null_tracker_overrides_all_that_writes() -> None:
    writes = {name for name in vars(Tracker) if name.startswith("log_")} | {"set_tags", "finish"}
    assert writes <= set(vars(NullTracker))
