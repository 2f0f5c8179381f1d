"""Same seed, same weights; a run that was stopped and resumed equals one that was not, bit for bit."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from fvl_lightning.core.config.yaml_text import write_yaml
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.training.step_logging import LogWindow
from tests.conftest import TINY, TINY_DATA, Run
from tests.integration.runs import (
    ENCODER,
    FINETUNE,
    PACKED,
    STEPS,
    TILED,
    UNTRACKED,
    StopAt,
    Straight,
    assert_same_run,
    start,
    wait_for,
)


@pytest.mark.slow
def test_a_seed_gives_the_same_weights_and_another_others(workspace: Path, fvl_here: Run, straight: Straight) -> None:
    for seed in (0, 1):
        done = fvl_here(workspace, "train", *FINETUNE, *TINY_DATA, *STEPS, UNTRACKED, f"name=run{seed}", f"seed={seed}")
        assert done.returncode == 0, done.stderr
    same, other = (RunFolder(workspace / "runs" / name) for name in ("run0", "run1"))
    assert_same_run(straight(FINETUNE), same)
    with pytest.raises(AssertionError, match="tensors differ"):
        assert_same_run(straight(FINETUNE), other)


@pytest.mark.parametrize(
    ("experiment", "batches"),
    [
        pytest.param(FINETUNE, 7, id="between-checkpoints", marks=pytest.mark.slow),
        pytest.param(FINETUNE, 8, id="at-a-validation", marks=pytest.mark.slow),
        pytest.param(FINETUNE, 10, id="at-a-checkpoint"),
        pytest.param(PACKED, 13, id="packed", marks=pytest.mark.slow),
        pytest.param(TILED, 13, id="tiles", marks=pytest.mark.slow),
        pytest.param(ENCODER, 14, id="accumulated", marks=pytest.mark.slow),
        pytest.param(ENCODER, 13, id="in-the-middle-of-an-accumulated-step", marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_then_resume_equals_an_uninterrupted_run(
    experiment: tuple[str, ...], batches: int, workspace: Path, fvl_here: Run, stop_at: StopAt, straight: Straight
) -> None:
    words = ("train", *experiment, *TINY_DATA, *STEPS, UNTRACKED)
    expected = straight(experiment)
    stop_at(batches)
    stopped = fvl_here(workspace, *words, "name=stopped")
    run = RunFolder(workspace / "runs" / "stopped")
    assert stopped.returncode == 130, stopped.stderr
    assert "stopped" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert run.info["status"] == "interrupted"
    assert run.last_checkpoint.is_file()
    assert not run.model.exists()
    resumed = fvl_here(workspace, *words, "name=stopped", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert run.finished
    assert [path.name for path in (workspace / "runs").iterdir()] == ["stopped"]
    assert_same_run(expected, run)


def test_a_run_that_an_earlier_version_started_goes_on(
    workspace: Path, fvl_here: Run, stop_at: StopAt, straight: Straight
) -> None:
    """Its files do not have what came later; what is absent was as the default is."""
    words = ("train", *FINETUNE, *TINY_DATA, *STEPS, UNTRACKED)
    expected = straight(FINETUNE)
    stop_at(8)
    assert fvl_here(workspace, *words, "name=older").returncode == 130
    run = RunFolder(workspace / "runs" / "older")
    config, info = run.config, run.info
    later = (("data", "image_fit"), ("data", "scaled_decode"), ("language_model", "chat_date"), ("encoder", "decoder"))
    for slot, key in later:
        del config[slot][key]
    del config["chosen"], config["trainer"]["spike_threshold"], info["inputs"], info["asking"], info["components"]
    (run.path / "config.yaml").write_text(write_yaml(config), encoding="utf-8")
    (run.path / "run.json").write_text(json.dumps(info), encoding="utf-8")
    resumed = fvl_here(workspace, *words, "name=older", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(expected, run)


def test_resuming_after_a_crash_repeats_the_steps_since_the_checkpoint(
    workspace: Path, fvl_here: Run, stop_at: StopAt, straight: Straight
) -> None:
    words = ("train", *FINETUNE, *TINY_DATA, *STEPS, UNTRACKED)
    expected = straight(FINETUNE)
    stop_at(8, RuntimeError("the lights went out"))
    with pytest.raises(RuntimeError, match="lights"):
        fvl_here(workspace, *words, "name=crashed")
    run = RunFolder(workspace / "runs" / "crashed")
    assert run.info["status"] == "failed"
    assert "the lights went out" in run.info["error"]
    assert torch.load(run.last_checkpoint, weights_only=True)["global_step"] == 5
    resumed = fvl_here(workspace, *words, "name=crashed", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(expected, run)


@pytest.mark.slow
def test_mlflow_shows_one_run_killed_then_finished(
    workspace: Path, empty_store: Path, fvl_here: Run, stop_at: StopAt
) -> None:
    shutil.copy(empty_store, workspace / "mlflow.db")
    client = MlflowClient(tracking_uri=f"sqlite:///{workspace / 'mlflow.db'}")
    words = ("train", *FINETUNE, *TINY_DATA, *STEPS)
    stop_at(7)
    assert fvl_here(workspace, *words).returncode == 130
    run = RunFolder(workspace / "runs" / "finetune")
    run_id = run.info["mlflow_run_id"]
    assert client.get_run(run_id).info.status == "KILLED"
    assert len(client.get_metric_history(run_id, "train/loss")) == 7
    assert fvl_here(workspace, *words, "--resume").returncode == 0
    assert run.info["mlflow_run_id"] == run_id
    assert client.get_run(run_id).info.status == "FINISHED"
    experiment = client.get_experiment_by_name("fvl-demo")
    assert len(client.search_runs([experiment.experiment_id])) == 1
    for name in client.get_run(run_id).data.metrics:
        steps = sorted(point.step for point in client.get_metric_history(run_id, name))
        assert steps == sorted(set(steps)), name
    assert [p.step for p in client.get_metric_history(run_id, "train/loss")] == list(range(1, 13))


def test_what_cannot_be_resumed_is_refused_in_one_sentence(
    workspace: Path, fvl_here: Run, stop_at: StopAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("train", *FINETUNE, *TINY_DATA, *STEPS, UNTRACKED)

    def refused(*more: str) -> str:
        before = {path: path.stat().st_mtime_ns for path in (workspace / "runs").rglob("*")}
        done = fvl_here(workspace, *words, "--resume", *more)
        assert done.returncode == 2, done.stderr
        sentence = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
        assert len(sentence) == 1
        assert {path: path.stat().st_mtime_ns for path in (workspace / "runs").rglob("*")} == before
        return sentence[0]

    stop_at(7)
    assert fvl_here(workspace, *words).returncode == 130
    assert "no run named finetun" in refused("name=finetun")
    assert "another configuration, at optimizer.learning_rate" in refused("optimizer.learning_rate=0.5")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 3)
        assert "ran with 1 threads and this process has 3" in refused()
    checkpoint = RunFolder(workspace / "runs" / "finetune").last_checkpoint
    checkpoint.with_name("previous.ckpt").unlink()
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[:1000])
    assert f"{checkpoint.relative_to(workspace)} is damaged: no whole checkpoint" in refused()
    torch.save({"of": "something else"}, checkpoint)
    assert f"{checkpoint.relative_to(workspace)} is no checkpoint of this kit" in refused()
    checkpoint.unlink()
    assert "stopped before its first checkpoint" in refused()
    checkpoint.write_bytes(whole)
    assert fvl_here(workspace, *words, "--resume").returncode == 0
    assert "is finished" in refused()


def test_a_second_ctrl_c_stops_at_once_and_keeps_the_last_checkpoint(
    workspace: Path, fvl_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = LogWindow.on_train_batch_start

    def impatient(self: LogWindow, trainer: Any, *arguments: Any) -> None:
        original(self, trainer, *arguments)
        if trainer.global_step == 7:
            # To this very thread, where Python answers at once: two that wait for it together would be one.
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(LogWindow, "on_train_batch_start", impatient)
    before = signal.getsignal(signal.SIGINT)
    try:
        done = fvl_here(workspace, "train", *FINETUNE, *TINY_DATA, *STEPS, UNTRACKED)
    finally:
        signal.signal(signal.SIGINT, before)
    assert done.returncode == 130
    run = RunFolder(workspace / "runs" / "finetune")
    assert run.info["status"] == "interrupted"
    assert torch.load(run.last_checkpoint, weights_only=True)["global_step"] == 5


@pytest.mark.slow
def test_ctrl_c_in_a_shell_ends_a_training_with_130(workspace: Path) -> None:
    process = start(workspace, "train", *FINETUNE, *TINY, "trainer.max_steps=100000", "trainer.log_every=1")
    run = RunFolder(workspace / "runs" / "finetune")
    try:
        wait_for(lambda: len(run.curve("train/loss")) >= 3, process, 120)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "--resume" in err
    assert run.info["status"] == "interrupted"
    checkpoint = torch.load(run.last_checkpoint, weights_only=True)
    assert checkpoint["global_step"] == run.curve("train/loss")[-1][0]


@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_a_demo_stops_every_arm_and_the_next_one_goes_on(tmp_path: Path, fvl: Run) -> None:
    report = tmp_path / "runs" / "demo-quick"
    process = start(tmp_path, "demo", "--quick")
    try:
        wait_for(lambda: any(report.glob("*/pretrain/metrics.jsonl")), process, 600)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in err
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    encoder = RunFolder(report / "encoder_pretrain")
    parent_id = client.get_run(encoder.info["mlflow_run_id"]).data.tags["mlflow.parentRunId"]
    assert client.get_run(parent_id).info.status == "KILLED"
    begun = [RunFolder(path.parent) for path in report.glob("*/*/run.json")]
    stopped = [run for run in begun if run.info["status"] == "interrupted"]
    assert stopped
    assert {run.info["status"] for run in begun} <= {"interrupted", "finished"}
    for run in stopped:
        assert run.last_checkpoint.is_file()
        assert client.get_run(run.info["mlflow_run_id"]).info.status == "KILLED"
    steps = {run.path: torch.load(run.last_checkpoint, weights_only=True)["global_step"] for run in stopped}
    done = fvl(tmp_path, "demo", "--quick", timeout=900)
    assert done.returncode == 0, done.stderr
    assert not list(report.glob("**/pretrain-2")), "an arm began again instead of going on"
    for run in stopped:
        assert run.finished
        assert [step for step, _ in run.curve("train/loss")][-1] > steps[run.path]
