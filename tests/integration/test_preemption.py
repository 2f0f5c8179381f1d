"""A cluster takes the machine away: the step is saved, the exit code asks for more, and the same command goes on."""

import errno
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from fvl_lightning.core.errors import EXIT_REQUEUE
from fvl_lightning.runs.folder import RunFolder
from tests.conftest import TINY, TINY_DATA, Run
from tests.integration.runs import (
    FINETUNE,
    PACKED,
    STEPS,
    UNTRACKED,
    StopAt,
    Straight,
    assert_same_run,
    start,
    wait_for,
)

JOB = ("train", *FINETUNE, *TINY_DATA, *STEPS, UNTRACKED, "name=job", "--resume-or-start")
"""One command for the first start and for every requeue."""


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGUSR1", marks=pytest.mark.slow)])
def test_one_command_starts_goes_on_and_then_has_nothing_to_do(
    name: str, workspace: Path, fvl_here: Run, stop_at: StopAt, straight: Straight, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = straight(FINETUNE)
    # Lightning knows SLURM by these, and would requeue by itself.
    slurm = {"NTASKS": "1", "JOB_ID": "7", "JOB_NAME": "fvl", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for variable, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{variable}", value)
    stop_at(7, signal.Signals[name])
    stopped = fvl_here(workspace, *JOB)
    assert stopped.returncode == EXIT_REQUEUE == 75, stopped.stderr
    assert "stopped by a signal" in stopped.stderr
    run = RunFolder(workspace / "runs" / "job")
    assert run.info["status"] == "interrupted"
    assert torch.load(run.last_checkpoint, weights_only=True)["global_step"] == 7
    resumed = fvl_here(workspace, *JOB)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(expected, run)
    before = run.last_checkpoint.stat().st_mtime_ns
    again = fvl_here(workspace, *JOB)
    assert again.returncode == 0, again.stderr
    assert run.last_checkpoint.stat().st_mtime_ns == before
    assert [path.name for path in (workspace / "runs").iterdir()] == ["job"]


@pytest.mark.slow
def test_a_signal_at_the_last_step_lets_the_run_finish(workspace: Path, fvl_here: Run, stop_at: StopAt) -> None:
    stop_at(12, signal.SIGTERM)
    done = fvl_here(workspace, *JOB)
    assert done.returncode == 0, done.stderr
    assert RunFolder(workspace / "runs" / "job").finished


def test_a_signal_before_the_first_step_stops_at_once(
    workspace: Path, fvl_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fvl_lightning.runs import setup

    original, before = setup.build_stage, signal.getsignal(signal.SIGTERM)

    def interrupted(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(setup, "build_stage", interrupted)
    assert fvl_here(workspace, *JOB).returncode == EXIT_REQUEUE
    assert not (workspace / "runs").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_a_kill_leaves_is_gone_on_with(
    workspace: Path, fvl_here: Run, stop_at: StopAt, straight: Straight
) -> None:
    """A run that is `running` for ever, a checkpoint cut short, half of another, and a later run without any."""
    expected = straight(FINETUNE)
    stop_at(12, RuntimeError("killed"))
    with pytest.raises(RuntimeError, match="killed"):
        fvl_here(workspace, *JOB)
    run = RunFolder(workspace / "runs" / "job")
    run.record(status="running")
    checkpoint = run.last_checkpoint
    shutil.copy(checkpoint, checkpoint.with_name("previous.ckpt"))
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    checkpoint.with_name("last.ckpt.tmp").write_bytes(b"half")
    later = RunFolder.create(workspace / "runs", "job", run.config)
    resumed = fvl_here(workspace, *JOB)
    assert resumed.returncode == 0, resumed.stderr
    assert "last.ckpt is damaged; the checkpoint before it is taken" in resumed.stderr
    assert "previous.ckpt" in resumed.stderr
    assert_same_run(expected, run)
    assert not later.finished


def test_another_configuration_is_another_run(workspace: Path, fvl_here: Run, stop_at: StopAt) -> None:
    stop_at(7, signal.SIGTERM)
    assert fvl_here(workspace, *JOB).returncode == EXIT_REQUEUE
    done = fvl_here(workspace, *JOB, "seed=1", "trainer.max_steps=2")
    assert done.returncode == 0, done.stderr
    assert not RunFolder(workspace / "runs" / "job").finished
    assert RunFolder(workspace / "runs" / "job-2").finished


def full_disk(monkeypatch: pytest.MonkeyPatch, saves: set[int]) -> None:
    """The `saves`-th times a checkpoint is written, counted from 1, the disk is full."""
    fsync, seen = os.fsync, 0

    def full(handle: int) -> None:
        nonlocal seen
        seen += 1
        if seen in saves:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)


def test_a_disk_that_is_full_for_a_while(
    workspace: Path, fvl_here: Run, straight: Straight, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_disk(monkeypatch, {2})
    done = fvl_here(workspace, *JOB)
    assert done.returncode == 0, done.stderr
    (warning,) = [line for line in done.stderr.splitlines() if "WARNING" in line and "not saved" in line]
    assert "step 10 was not saved: runs/job/checkpoints/last.ckpt could not be written" in warning
    assert "No space left on device" in warning
    assert "bytes free in runs/job/checkpoints" in warning
    assert_same_run(straight(FINETUNE), RunFolder(workspace / "runs" / "job"))


@pytest.mark.slow
def test_a_disk_that_is_full_at_the_last_step_and_for_the_model(
    workspace: Path, fvl_here: Run, straight: Straight, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        full_disk(patch, {2, 3})
        done = fvl_here(workspace, *JOB)
    assert done.returncode == 2
    assert "the last step was not saved: runs/job/checkpoints/last.ckpt could not be written (No space" in done.stderr
    run = RunFolder(workspace / "runs" / "job")
    assert run.info["status"] == "failed"
    assert torch.load(run.last_checkpoint, weights_only=True)["global_step"] == 5

    def full(*_: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:  # the checkpoint fits, the model does not
        patch.setattr("fvl_lightning.stages.language.LanguageStage.save_model", full)
        done = fvl_here(workspace, *JOB)
    assert done.returncode == 2
    assert "runs/job/model cannot be written (No space left on device; " in done.stderr
    assert "make room, `--resume` finishes the run" in done.stderr
    assert fvl_here(workspace, *JOB).returncode == 0
    assert_same_run(straight(FINETUNE), run)


def test_an_error_in_validation_leaves_no_worker(
    workspace: Path, fvl_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers ignore the signal by which Python's exit would end them: the process would wait for them for ever."""

    def fails(*_: Any) -> None:
        raise RuntimeError("on purpose")

    monkeypatch.setattr("fvl_lightning.stages.language.LanguageStage.validation_step", fails)
    with pytest.raises(RuntimeError, match="on purpose") as caught:
        fvl_here(workspace, *JOB, "data.workers=2")
    assert not multiprocessing.active_children(), "the loop that reads them has ended"
    assert caught.tb is not None


@pytest.mark.slow
def test_sigterm_to_every_process_of_a_job(workspace: Path) -> None:
    """A cluster signals the loader's workers too, and twice; whatever it was at, the last step is saved."""
    process = start(workspace, "train", *PACKED, *TINY, "trainer.max_steps=100000", "trainer.log_every=1")
    run = RunFolder(workspace / "runs" / "finetune")
    try:
        wait_for(lambda: len(run.curve("train/loss")) >= 2, process, 200)
        for _ in range(2):
            os.killpg(process.pid, signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == EXIT_REQUEUE, err
    assert "Traceback" not in err
    checkpoint = torch.load(run.last_checkpoint, weights_only=True)
    assert checkpoint["global_step"] == run.curve("train/loss")[-1][0]
