"""One run in a real sqlite store: what is logged is there, once, and the training never waits for it."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
import yaml
from lightning import LightningModule, Trainer
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Metric
from PIL import Image

from fvl_lightning.core.errors import DataError
from fvl_lightning.tracking import tracker as module
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


def test_metrics_are_buffered(uri: str, tracker: Tracker) -> None:
    tracker.log_metrics({"loss": 3.0, "learning_rate": torch.tensor(0.5)}, step=10)
    tracker.log_metrics({"loss": torch.tensor(2.0, requires_grad=True)}, step=20)
    tracker.save()
    assert points(uri, tracker, "loss") == []
    tracker.flush()
    assert points(uri, tracker, "loss") == [(10, 3.0), (20, 2.0)]
    assert points(uri, tracker, "learning_rate") == [(10, 0.5)]


def test_full_buffer_is_written(uri: str, tracker: Tracker) -> None:
    for step in range(module.FLUSH_POINTS + 3):
        tracker.log_metrics({"loss": 1.0 / (step + 1)}, step)
    assert len(points(uri, tracker, "loss")) == module.FLUSH_POINTS


def test_old_buffer_is_written(uri: str, tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.05)
    time.sleep(0.06)
    tracker.log_metrics({"loss": 1.0}, 1)
    assert points(uri, tracker, "loss") == [(1, 1.0)]


def test_many_points_go_in_batches(uri: str, tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_POINTS", 10_000)
    for step in range(300):
        tracker.log_metrics({f"metric_{number}": float(step) for number in range(8)}, step)
    tracker.flush()
    assert len(points(uri, tracker, "metric_7")) == 300


def test_a_call_is_cheap(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_POINTS", 10**9)
    metrics: dict[str, Any] = {f"metric_{number}": torch.tensor(1.0) for number in range(12)}
    costs = []
    for step in range(200):
        start = time.perf_counter()
        tracker.log_metrics(metrics, step)
        costs.append(time.perf_counter() - start)
    assert sorted(costs)[100] < 50e-6


def test_resume_logs_no_point_twice(uri: str, tracker: Tracker) -> None:
    for step in (10, 20, 30):
        tracker.log_metrics({"loss": 1.0 / step, "tokens_per_second": 100.0 + step}, step)
    tracker.log_metrics({"accuracy": 0.5})
    tracker.log_params({"fusion": "concat", "max_steps": 30})
    tracker.finish("KILLED")

    resumed = Tracker.start(uri, "shapes", "ignored", {"git_commit": "abc"}, run_id=tracker.run_id)
    assert resumed.run_id == tracker.run_id
    for step in (20, 30, 40, 50):
        resumed.log_metrics({"loss": 1.0 / step, "tokens_per_second": 200.0 + step, "new": 1.0}, step)
    resumed.log_metrics({"accuracy": 0.5})
    resumed.log_params({"fusion": "concat", "max_steps": 50, "seed": 3})
    resumed.finish("FINISHED")

    assert points(uri, tracker, "loss") == [(step, 1.0 / step) for step in (10, 20, 30, 40, 50)]
    assert [step for step, _ in points(uri, tracker, "tokens_per_second")] == [10, 20, 30, 40, 50]
    assert [step for step, _ in points(uri, tracker, "new")] == [20, 30, 40, 50]
    assert points(uri, tracker, "accuracy") == [(0, 0.5)]
    run = MlflowClient(tracking_uri=uri).get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "concat"
    assert run.data.params == {"fusion": "concat", "max_steps": "30", "seed": "3"}
    assert run.data.tags["git_commit"] == "abc"


def test_results_may_change(uri: str, tracker: Tracker) -> None:
    for value in (0.5, 0.5, 0.75):
        tracker.log_metrics({"accuracy": value})
        tracker.flush()
        time.sleep(0.002)
    assert [value for _, value in points(uri, tracker, "accuracy")] == [0.5, 0.75]
    assert MlflowClient(tracking_uri=uri).get_run(tracker.run_id).data.metrics["accuracy"] == 0.75


def test_the_same_step_logged_twice_by_lightning(uri: str, tracker: Tracker) -> None:
    tracker.log_metrics({"loss": 1.0, "epoch": 0}, 10)
    tracker.log_metrics({"validation/loss": 2.0, "epoch": 0}, 10)
    tracker.flush()
    assert points(uri, tracker, "epoch") == [(10, 0.0)]
    assert points(uri, tracker, "validation/loss") == [(10, 2.0)]


def test_a_store_that_fails_for_a_while_loses_and_doubles_nothing(
    uri: str, tracker: Tracker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "BATCH_METRICS", 2)
    log_batch, calls = tracker._client.log_batch, 0

    def flaky(run_id: str, metrics: Sequence[Metric]) -> None:
        nonlocal calls
        calls += 1
        log_batch(run_id, metrics=metrics)
        if calls == 2:
            raise mlflow.MlflowException("database is locked\nand a traceback")

    monkeypatch.setattr(tracker._client, "log_batch", flaky)
    for step in range(5):
        tracker.log_metrics({"loss": float(step)}, step)
    tracker.after_save_checkpoint(None)
    assert "database is locked" in caplog.text
    assert "traceback" not in caplog.text
    tracker.finish("FINISHED")
    assert points(uri, tracker, "loss") == [(step, float(step)) for step in range(5)]


def test_finish_says_when_the_store_is_gone(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise mlflow.MlflowException("disk full")

    monkeypatch.setattr(tracker._client, "log_batch", refuse)
    tracker.log_metrics({"loss": 1.0}, 1)
    with pytest.raises(DataError, match="disk full"):
        tracker.finish("FINISHED")


def test_unknown_run(uri: str) -> None:
    with pytest.raises(DataError, match="no-such-run") as raised:
        Tracker.start(uri, "shapes", "x", {}, run_id="no-such-run")
    assert "\n" not in str(raised.value)


def test_parameters(uri: str, tracker: Tracker) -> None:
    many = {f"optimizer.learning_rates[{number}]": number for number in range(150)}
    tracker.log_params({**many, "prompt": "x" * 7000, "short": None})
    kept = MlflowClient(tracking_uri=uri).get_run(tracker.run_id).data.params
    assert len(kept) == 152
    assert kept["optimizer.learning_rates_149_"] == "149"
    assert len(kept["prompt"]) == 6000
    assert kept["short"] == "None"


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
    tracker.log_params({key: 1})
    tracker.log_metrics({key: 1.0}, 1)
    tracker.flush()
    assert points(uri, tracker, clean) == [(1, 1.0)]


def test_numbers_that_are_none(uri: str, tracker: Tracker) -> None:
    tracker.log_metrics({"loss": float("nan"), "norm": torch.tensor(float("inf"))}, 1)
    tracker.flush()
    assert np.isnan(points(uri, tracker, "loss")[0][1])
    assert points(uri, tracker, "norm")[0][1] > 1e300


def test_children_know_their_parent(uri: str, tracker: Tracker) -> None:
    children = [
        Tracker.start(uri, "shapes", name, {"fusion": name}, parent_run_id=tracker.run_id) for name in ("gated", "mean")
    ]
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("shapes")
    found = client.search_runs([experiment.experiment_id], f"tags.mlflow.parentRunId = '{tracker.run_id}'")
    assert {run.info.run_id for run in found} == {child.run_id for child in children}
    assert {run.data.tags["fusion"] for run in found} == {"gated", "mean"}


def test_tables_stand_side_by_side(uri: str, tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    # load_table asks MLflow's global store, whichever client it is called on.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    other = Tracker.start(uri, "shapes", "gated", {})
    rows = [{"question": "what colour?", "truth": "red", "answer": "blue"}]
    tracker.log_table("predictions", rows)
    tracker.log_table("predictions", [*rows, {"question": "which word?", "truth": "cat"}])
    other.log_table("predictions", rows)
    client = MlflowClient(tracking_uri=uri)
    both = client.load_table(
        client.get_experiment_by_name("shapes").experiment_id,
        "predictions.json",
        run_ids=[tracker.run_id, other.run_id],
        extra_columns=["run_id"],
    )
    assert list(both.columns) == ["question", "truth", "answer", "run_id"]
    assert both[both.run_id == tracker.run_id].question.tolist() == ["what colour?", "which word?"]
    assert both[both.run_id == other.run_id].answer.tolist() == ["blue"]


def test_artifacts(uri: str, tracker: Tracker, tmp_path: Path) -> None:
    config = {"name": "finetune", "fusion": {"name": "gated"}, "betas": [0.9, 0.95], "text": "größer"}
    figure = Figure()
    figure.add_subplot().plot([1, 2, 3])
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    tracker.log_config(config)
    tracker.log_figure(figure, "loss.png")
    tracker.log_figure(tmp_path / "red.png", "samples/copy.png")
    tracker.log_image(np.zeros((4, 4, 3), dtype=np.uint8), "black.png")
    tracker.log_artifact(tmp_path / "red.png")
    client = MlflowClient(tracking_uri=uri)
    files = {file.path for file in client.list_artifacts(tracker.run_id)}
    assert files == {"config.yaml", "loss.png", "samples", "black.png", "red.png"}
    assert yaml.safe_load(Path(client.download_artifacts(tracker.run_id, "config.yaml")).read_text("utf-8")) == config
    with Image.open(client.download_artifacts(tracker.run_id, "samples/copy.png")) as image:
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


class Line(LightningModule):
    """The least that Lightning trains."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch: torch.Tensor, batch_index: int) -> torch.Tensor:
        loss = (self.weight * batch).pow(2).mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(logger: Tracker, tmp_path: Path) -> None:
    """Four steps under Lightning."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(
        max_steps=4, log_every_n_steps=2, logger=logger, accelerator="cpu", default_root_dir=tmp_path, **quiet
    )
    trainer.fit(Line(), torch.utils.data.DataLoader(torch.ones(8, 1)))


def test_lightning_logs_through_it(uri: str, tracker: Tracker, tmp_path: Path) -> None:
    fit(tracker, tmp_path)
    assert [step for step, _ in points(uri, tracker, "loss")] == [1, 3]
    assert MlflowClient(tracking_uri=uri).get_run(tracker.run_id).info.status == "RUNNING"


def test_null_tracker_takes_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    null = NullTracker()
    fit(null, tmp_path)
    null.log_metrics({"loss": 1.0}, 1)
    null.log_params({"a": 1})
    null.log_config({"a": 1})
    null.log_table("predictions", [{"a": 1}])
    null.log_figure(tmp_path / "missing.png", "figure.png")
    null.log_image(tmp_path / "missing.png", "image.png")
    null.log_artifact(tmp_path / "missing.png")
    null.set_tags({"a": "1"})
    null.flush()
    null.finish("FINISHED")
    assert null.run_id == ""
    assert not list(tmp_path.iterdir())


def test_null_tracker_overrides_all_that_writes() -> None:
    writes = {name for name in vars(Tracker) if name.startswith("log_")} | {"set_tags", "finish"}
    assert writes - {"log_hyperparams"} <= set(vars(NullTracker))
