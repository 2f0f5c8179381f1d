"""Same seed, same weights; a run that was stopped and resumed equals one that was not, bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from fvl_lightning.training.callbacks import LogWindow
from fvl_lightning.training.run_folder import RunFolder
from tests.conftest import ONE_THREAD, TINY, TINY_DATA, Run, furnish

FINETUNE = (
    "experiments/demo/finetune.yaml",
    "language_model.model.attention_dropout=0.1",  # so that the state of the random numbers counts
)
ENCODER = ("experiments/demo/encoder_pretrain.yaml", "encoder.model.text_config.dropout=0.1", "trainer.accumulate=2")
PACKED = (*FINETUNE, "data.packing=best_fit", "data.sequence_length=160", "data.workers=2", "trainer.accumulate=2")
STEPS = (
    "trainer.max_steps=12", "trainer.batch_size=8", "trainer.log_every=1", "trainer.validate_every=4",
    "trainer.checkpoint_every=5", "optimizer.warmup_steps=3",
)  # fmt: skip
UNTRACKED = "tracking.enabled=false"
TIMINGS = ("train/tokens_per_second", "train/step_seconds", "machine/peak_memory_bytes")

StopAt = Callable[..., None]
Straight = Callable[[tuple[str, ...]], RunFolder]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, fvl_here: Run) -> Straight:
    """A run of an experiment that nothing stops, made once for each."""
    runs: dict[tuple[str, ...], RunFolder] = {}

    def train(experiment: tuple[str, ...]) -> RunFolder:
        if experiment not in runs:
            folder = furnish(tmp_path_factory.mktemp("straight"), tiny_data)
            done = fvl_here(folder, "train", *experiment, *TINY_DATA, *STEPS, UNTRACKED, "name=straight")
            assert done.returncode == 0, done.stderr
            runs[experiment] = RunFolder(folder / "runs" / "straight")
        return runs[experiment]

    return train


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> StopAt:
    """Ctrl-C (or an exception) when the n-th batch of a training is done; once."""

    def arm(batches: int, error: BaseException | None = None) -> None:
        original, seen = LogWindow.on_train_batch_end, 0

        def on_train_batch_end(self: LogWindow, *arguments: Any) -> None:
            nonlocal seen
            original(self, *arguments)
            seen += 1
            if seen == batches:
                if error is not None:
                    raise error
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(LogWindow, "on_train_batch_end", on_train_batch_end)

    return arm


def curves(run: RunFolder) -> dict[str, list[tuple[int, float]]]:
    """Everything logged but timings, by name."""
    names = {name for line in run.metrics.read_text(encoding="utf-8").splitlines() for name in json.loads(line)}
    return {name: run.curve(name) for name in names - {"step", *TIMINGS}}


def assert_same_run(one: RunFolder, other: RunFolder) -> None:
    """Bit-equal weights, and the same values at the same steps."""
    weights, others = (load_file(run.model / "model.safetensors") for run in (one, other))
    assert weights.keys() == others.keys()
    differ = [name for name in weights if not torch.equal(weights[name], others[name])]
    assert not differ, f"{len(differ)} of {len(weights)} tensors differ, such as {differ[0]}"
    assert curves(one) == curves(other)


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
        pytest.param(FINETUNE, 7, id="between-checkpoints"),
        pytest.param(FINETUNE, 8, id="at-a-validation"),
        pytest.param(FINETUNE, 10, id="at-a-checkpoint"),
        pytest.param(PACKED, 13, id="packed"),
        pytest.param(ENCODER, 14, id="accumulated"),
        pytest.param(ENCODER, 13, id="in-the-middle-of-an-accumulated-step"),
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
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[:1000])
    assert f"{checkpoint.relative_to(workspace)} is not a readable checkpoint" in refused()
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


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """`fvl <words>` in a process of its own, reachable by Ctrl-C."""
    command = [sys.executable, "-m", "fvl_lightning", *words]
    return subprocess.Popen(
        command, cwd=folder, env=os.environ | ONE_THREAD, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float) -> None:
    """Waits until `condition`; fails where the process ends before."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


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
