"""A tracking server that comes and goes: the training neither stops nor waits, and every point arrives once."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from fvl_lightning.core.errors import EXIT_REQUEUE
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.tracking import mlflow_live_sync as live_sync
from fvl_lightning.tracking.metrics_log import read_metrics
from fvl_lightning.training.step_logging import LogWindow
from tests.conftest import TINY_DATA, Run
from tests.integration.runs import FINETUNE, STEPS
from tests.tracking.server import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, Callable[[], None]]], None]:
    """{step: what to do after it}; and a sync that sends every point at once and soon tries again."""
    monkeypatch.setattr(live_sync, "SYNC_POINTS", 1)
    monkeypatch.setattr(live_sync, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(live_sync, "MAX_RETRY_SECONDS", 0.01)

    def arm(actions: dict[int, Callable[[], None]]) -> None:
        original = LogWindow.on_train_batch_end

        def on_train_batch_end(self: LogWindow, trainer: Any, *arguments: Any) -> None:
            original(self, trainer, *arguments)
            actions.pop(trainer.global_step, lambda: None)()

        monkeypatch.setattr(LogWindow, "on_train_batch_end", on_train_batch_end)

    return arm


def assert_complete(run: RunFolder, server: Server) -> None:
    """Every point of the journal is in the store, once, and the run has ended there as it has here."""
    client = MlflowClient(tracking_uri=server.uri)
    found = client.get_run(run.info["mlflow_run_id"])
    assert found.info.status == "FINISHED"
    assert {file.path for file in client.list_artifacts(found.info.run_id)} == {"config.yaml"}
    names = {name for entry in read_metrics(run.metrics) for name in entry} - {"step", "time", "note"}
    assert names == found.data.metrics.keys()
    for name in names:
        stored = client.get_metric_history(found.info.run_id, name)
        assert sorted(point.step for point in stored) == [step for step, _ in run.curve(name)], name
    assert [step for step, _ in run.curve("train/loss")] == list(range(1, 13))
    experiment = client.get_experiment_by_name(run.config["tracking"]["experiment"])
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 1


@pytest.mark.slow
def test_a_server_that_goes_away_and_comes_back(workspace: Path, server: Server, fvl_here: Run, at: Any) -> None:
    at({4: server.stop, 8: server.start})
    words = ("train", *FINETUNE, *TINY_DATA, *STEPS, f"tracking.uri={server.uri}", "tracking.experiment=back")
    done = fvl_here(workspace, *words)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("until the store can be reached") == 1
    assert "fvl sync" not in done.stderr
    assert_complete(RunFolder(workspace / "runs" / "finetune"), server)


@pytest.mark.slow
def test_a_server_that_stays_away(workspace: Path, server: Server, fvl_here: Run, at: Any) -> None:
    """Through a requeue as well; `fvl sync` then sends the rest, and the second time nothing."""
    words = ("train", *FINETUNE, *TINY_DATA, *STEPS, f"tracking.uri={server.uri}", "tracking.experiment=away")
    at({4: server.stop, 7: lambda: signal.raise_signal(signal.SIGTERM)})
    run = RunFolder(workspace / "runs" / "finetune")
    try:
        stopped = fvl_here(workspace, *words)
        assert stopped.returncode == EXIT_REQUEUE
        assert "`fvl sync runs/finetune` sends it" in stopped.stderr
        resumed = fvl_here(workspace, *words, "--resume-or-start")
        assert resumed.returncode == 0, resumed.stderr
        assert "no MLflow server answers" in resumed.stderr
        assert run.finished
        unheard = fvl_here(workspace, "sync", "runs/finetune")
        assert unheard.returncode == 2
        assert "no MLflow server answers" in unheard.stderr
    finally:
        server.start()
    sent = fvl_here(workspace, "sync", "runs/finetune")
    assert sent.returncode == 0, sent.stderr
    assert " points and " in sent.stdout
    assert_complete(run, server)
    again = fvl_here(workspace, "sync", run.info["mlflow_run_id"])
    assert again.stdout == "runs/finetune: nothing was missing\n"
    assert_complete(run, server)


def test_a_run_that_was_not_tracked(workspace: Path, fvl_here: Run) -> None:
    run = RunFolder.create(workspace / "runs", "alone", {"stage": {"name": "finetune"}})
    done = fvl_here(workspace, "sync", str(run.path))
    assert done.returncode == 2
    assert "was not tracked" in done.stderr
