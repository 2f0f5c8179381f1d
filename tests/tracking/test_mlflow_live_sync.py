"""A store that follows a training's metrics log: every point once, few calls, and no training that waits for it."""

import multiprocessing
import shutil
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric

from fvl_lightning.core.errors import DataError
from fvl_lightning.tracking import mlflow_live_sync as module
from fvl_lightning.tracking import mlflow_sync as sync_module
from fvl_lightning.tracking.metrics_log import JsonlLogger, read_metrics
from fvl_lightning.tracking.mlflow_live_sync import LiveSync
from fvl_lightning.tracking.mlflow_sync import RunDescription, SyncReport, send_run
from tests.tracking.test_mlflow_sync import DESCRIPTION

Follow = Callable[[], tuple[JsonlLogger, LiveSync]]


def following(uri: str, log: Path, key: str = "0123") -> tuple[JsonlLogger, LiveSync]:
    """A metrics log and the sync that follows it, as a training that starts or goes on has them."""
    description = RunDescription.of(uri, {**DESCRIPTION, "key": key})
    sync = LiveSync(log, description.uri, lambda: send_run(description, None, read_metrics(log)))
    sync.sync_soon()
    return JsonlLogger(log, sync), sync


@pytest.fixture
def uri(tmp_path: Path, empty_store: Path) -> str:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def follow(uri: str, tmp_path: Path) -> Follow:
    return lambda: following(uri, tmp_path / "metrics.jsonl")


def points(uri: str, key: str) -> list[tuple[int, float]]:
    """What the store's only run holds of one metric."""
    client = MlflowClient(tracking_uri=uri)
    [run] = client.search_runs([client.get_experiment_by_name("shapes").experiment_id])
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key)]


def test_the_run_is_there_before_its_first_step_and_points_wait_for_a_checkpoint(uri: str, follow: Follow) -> None:
    log, _ = follow()
    assert points(uri, "loss") == []
    log.log_metrics({"loss": 3.0, "rate": 0.5}, 10)
    log.log_metrics({"loss": 2.0}, 20)
    assert points(uri, "loss") == []
    log.after_save_checkpoint(None)
    assert points(uri, "loss") == [(10, 3.0), (20, 2.0)]
    log.log_metrics({"loss": 1.0}, 30)
    log.finalize("success")
    assert points(uri, "loss")[2:] == [(30, 1.0)]


def test_many_points_are_sent_and_so_are_old_ones(uri: str, follow: Follow, monkeypatch: pytest.MonkeyPatch) -> None:
    log, _ = follow()
    monkeypatch.setattr(module, "SYNC_POINTS", 20)
    for step in range(11):
        log.log_metrics({"loss": 1.0 / (step + 1), "rate": 1.0}, step)
    assert len(points(uri, "loss")) == 10
    monkeypatch.setattr(module, "SYNC_SECONDS", 0.0)
    log.log_metrics({"loss": 1.0}, 11)
    assert len(points(uri, "loss")) == 12


def test_only_new_lines_are_sent_in_batches(uri: str, follow: Follow, monkeypatch: pytest.MonkeyPatch) -> None:
    log, _ = follow()
    log.log_metrics({f"metric_{number}": 1.0 for number in range(8)}, 0)
    log.after_save_checkpoint(None)
    sent: list[int] = []
    log_batch = MlflowClient.log_batch

    def counting(client: MlflowClient, run_id: str, metrics: Sequence[Metric]) -> None:
        sent.append(len(metrics))
        log_batch(client, run_id, metrics=metrics)

    monkeypatch.setattr(MlflowClient, "log_batch", counting)
    monkeypatch.setattr(module, "SYNC_POINTS", 10_000)
    for step in range(1, 251):
        log.log_metrics({f"metric_{number}": float(step) for number in range(8)}, step)
    log.after_save_checkpoint(None)
    assert sent == [1000, 1000]
    assert len(points(uri, "metric_7")) == 251


def test_a_resumed_run_has_no_step_twice(uri: str, follow: Follow) -> None:
    log, _ = follow()
    for step in (10, 20, 30):
        log.log_metrics({"loss": 1.0 / step, "speed": 100.0 + step}, step)
    # The process is killed before the store has anything of it.
    log, sync = follow()
    for step in (20, 30, 40, 50):
        log.log_metrics({"loss": 1.0 / step, "speed": 200.0 + step, "new": 1.0}, step)
    log.after_save_checkpoint(None)
    log.log_metrics({"loss": 1.0, "epoch": 0}, 60)
    log.after_save_checkpoint(None)
    log.log_metrics({"validation/loss": 2.0, "epoch": 0}, 60)
    sync.sync()
    assert points(uri, "loss") == [(step, 1.0 / step) for step in (10, 20, 30, 40, 50)] + [(60, 1.0)]
    assert points(uri, "speed") == [(10, 110), (20, 120), (30, 130), (40, 240), (50, 250)]
    assert [step for step, _ in points(uri, "new")] == [20, 30, 40, 50]
    assert points(uri, "epoch") == [], "which Lightning adds"


def test_numbers_that_are_none(uri: str, follow: Follow) -> None:
    log, sync = follow()
    log.log_metrics({"loss": float("nan"), "norm": float("inf")}, 1)
    sync.sync()
    assert np.isnan(points(uri, "loss")[0][1])
    assert points(uri, "norm")[0][1] > 1e300


def test_a_store_that_fails_for_a_while_loses_and_doubles_nothing(
    uri: str, follow: Follow, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log, sync = follow()
    log_batch, calls = MlflowClient.log_batch, 0

    def flaky(client: MlflowClient, run_id: str, **content: Any) -> None:
        nonlocal calls
        calls += 1
        log_batch(client, run_id, **content)
        if calls == 2:
            raise mlflow.MlflowException("database is locked\nand a traceback")

    monkeypatch.setattr(sync_module, "BATCH_METRICS", 2)
    monkeypatch.setattr(MlflowClient, "log_batch", flaky)
    for step in range(5):
        log.log_metrics({"loss": float(step)}, step)
    log.after_save_checkpoint(None)
    assert "database is locked" in caplog.text
    assert "traceback" not in caplog.text
    sync.sync()
    assert points(uri, "loss") == [(step, float(step)) for step in range(5)]


def test_a_sync_by_somebody_else_doubles_nothing(uri: str, follow: Follow, tmp_path: Path) -> None:
    """Someone calls `fvl sync` while the run trains."""
    log, sync = follow()
    log.log_metrics({"loss": 3.0}, 1)
    log.log_metrics({"loss": 2.0}, 2)
    assert send_run(RunDescription.of(uri, DESCRIPTION), None, read_metrics(tmp_path / "metrics.jsonl")).points == 2
    sync.sync()
    assert points(uri, "loss") == [(1, 3.0), (2, 2.0)]


def test_a_store_that_is_away_is_asked_less_and_less_and_complained_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock, asked, away = 1000.0, [], True

    def send() -> SyncReport:
        asked.append(clock)
        if away:
            raise DataError("nobody answers")
        return SyncReport("run")

    monkeypatch.setattr(module.time, "monotonic", lambda: clock)
    log = JsonlLogger(tmp_path / "metrics.jsonl", LiveSync(tmp_path / "metrics.jsonl", "uri", send))
    for second in range(1, 1800):
        clock = 1000.0 + second
        log.log_metrics({"loss": 1.0 / second}, second)
        log.after_save_checkpoint(None)
    pauses = [later - sooner for sooner, later in pairwise(asked)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (10, 300)
    assert len(caplog.messages) == 1
    assert "nobody answers" in caplog.messages[0]
    away, clock = False, clock + 300
    log.after_save_checkpoint(None)
    assert asked[-1] == clock


def log_from_a_process(uri: str, folder: Path, number: int) -> None:
    """A run of 40 steps, sent to the store at every fourth."""
    log, sync = following(uri, folder / f"{number}.jsonl", f"key{number}")
    for step in range(1, 41):
        log.log_metrics({"loss": number + 1.0 / step, "speed": float(step)}, step)
        if step % 4 == 0:
            log.after_save_checkpoint(None)
    sync.sync_soon()


def test_eight_processes_log_to_one_sqlite_store(uri: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=log_from_a_process, args=(uri, tmp_path, number)) for number in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    # A store that was locked for long makes a sync fail; the next one, as `fvl sync`, sends the rest.
    for number in range(8):
        following(uri, tmp_path / f"{number}.jsonl", f"key{number}")
    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name("shapes").experiment_id])
    assert len(runs) == 8
    for run in runs:
        for key in ("loss", "speed"):
            history = client.get_metric_history(run.info.run_id, key)
            assert sorted(point.step for point in history) == list(range(1, 41))


def test_a_call_is_cheap(follow: Follow, monkeypatch: pytest.MonkeyPatch) -> None:
    log, _ = follow()
    monkeypatch.setattr(module, "SYNC_POINTS", 10**9)
    monkeypatch.setattr(module, "SYNC_SECONDS", 10**9)
    metrics = {f"metric_{number}": 1.0 for number in range(12)}
    costs = []
    for step in range(200):
        start = time.perf_counter()
        log.log_metrics(metrics, step)
        costs.append(time.perf_counter() - start)
    assert sorted(costs)[100] < 1e-3
