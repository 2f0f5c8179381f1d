"""Speed and memory of a training: what counts as time of the optimiser steps, and whose memory peak it is."""

import mmap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer

from fvl_lightning.stages.base import Stage
from fvl_lightning.training import memory_peak, step_logging
from fvl_lightning.training.checkpointing.last_and_previous import CheckpointFiles, read_checkpoint
from fvl_lightning.training.memory_peak import peak_memory_bytes, reset_peak_memory
from fvl_lightning.training.step_clock import StepClock
from fvl_lightning.training.step_logging import LogWindow
from tests.stages.fitting import batches_of, build_stage, fit, split

STEPS, ACCUMULATE, BATCH_SECONDS = 4, 8, 1.0
STEP_SECONDS = ACCUMULATE * BATCH_SECONDS


class Device:
    """A clock, and a device that runs behind the host: it makes a batch in a second, which nobody waits for at once."""

    def __init__(self) -> None:
        self.now = self.busy_until = 1000.0

    def enqueue(self) -> None:
        self.busy_until = max(self.busy_until, self.now) + BATCH_SECONDS

    def wait(self) -> None:
        self.now = max(self.now, self.busy_until)

    def runs(self, stage: Stage) -> None:
        """Has the stage compute on it: the host waits where a batch is copied, and where the step reads its norm."""
        step, clip, move = stage.training_step, stage.configure_gradient_clipping, stage.transfer_batch_to_device

        def training_step(*arguments: Any) -> Any:
            self.enqueue()
            return step(*arguments)

        def clipping(*arguments: Any, **named: Any) -> None:
            self.wait()
            clip(*arguments, **named)

        def transfer(*arguments: Any) -> Any:
            self.wait()
            return move(*arguments)

        stage.training_step = training_step  # type: ignore[method-assign]
        stage.configure_gradient_clipping = clipping  # type: ignore[method-assign]
        stage.transfer_batch_to_device = transfer  # type: ignore[method-assign]


class Interruptions(Callback):
    """Makes every validation take 100 s, and the preparation before the first step 1000 s."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def on_train_start(self, *_: Any) -> None:
        self.device.now += 1000

    def on_validation_epoch_start(self, *_: Any) -> None:
        self.device.now += 100


class Killed(Exception):
    pass


class Kill(Callback):
    """Ends the training at the beginning of a step, as a kill does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise Killed


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """A device whose clock is the process's, and on which every save takes 50 s."""
    made = Device()
    monkeypatch.setattr(time, "perf_counter", lambda: made.now)
    save = CheckpointFiles.save_checkpoint

    def slow_save(*arguments: Any, **named: Any) -> None:
        made.now += 50
        save(*arguments, **named)

    monkeypatch.setattr(CheckpointFiles, "save_checkpoint", slow_save)
    return made


def train(
    folder: Path, device: Device, log: LogWindow, *more: Callback, resume: Path | None = None, first: int = 0
) -> list[float]:
    """Trains four steps of eight batches, and returns the tokens of each of them."""
    folder.mkdir(exist_ok=True)
    settings = {"max_steps": STEPS, "accumulate": ACCUMULATE, "validate_every": 2, "checkpoint_every": 1}
    stage = build_stage("finetune", folder, trainer=settings | {"keep_best": True})
    device.runs(stage)
    batches = batches_of("finetune", STEPS, size=8)
    micro = split(batches[first:] + batches[:first], ACCUMULATE)  # as many as at first, or the epoch would be over
    fit(stage, micro, folder, [log, Interruptions(device), *more], resume, batches_of("finetune", 1, first=20))
    return [float(batch.token_ids.numel()) for batch in batches]


def test_the_speed_is_wall_clock_between_steps(tmp_path: Path, device: Device) -> None:
    """Nothing waits for the device within a batch; validation, checkpoints and preparation do not count."""
    log = LogWindow(2)
    tokens = train(tmp_path, device, log)
    assert device.now - 1000 > 1000 + STEPS * 50 + STEPS * STEP_SECONDS, "the others took their time"
    assert log.total_seconds == pytest.approx(STEPS * STEP_SECONDS, rel=0.03)
    wanted = [sum(tokens[step : step + 2]) / (2 * STEP_SECONDS) for step in (0, 2)]
    assert log.tokens_per_second == pytest.approx(wanted, rel=0.03)
    assert log.median_speed == max(log.tokens_per_second)


def test_a_resume_goes_on_with_the_seconds_of_the_checkpoint(tmp_path: Path, device: Device) -> None:
    """It was saved in the middle of a window; the batches after it, which the kill has cost, do not count."""
    killed, resumed, done = LogWindow(2), LogWindow(2, earlier_seconds=5000.0), LogWindow(2)
    with pytest.raises(Killed):
        train(tmp_path, device, killed, Kill(3))
    last = tmp_path / "last.ckpt"
    saved = read_checkpoint(last)["log_window"]
    assert saved["total_seconds"] == pytest.approx(3 * STEP_SECONDS, rel=0.03)
    assert saved["seconds"] == pytest.approx(STEP_SECONDS, rel=0.03)
    tokens = train(tmp_path, device, resumed, resume=last, first=3)
    assert resumed.total_seconds == pytest.approx(STEPS * STEP_SECONDS, rel=0.03)
    wanted = sum(tokens[2:]) / (2 * STEP_SECONDS)
    assert resumed.tokens_per_second == pytest.approx([wanted], rel=0.03)
    train(tmp_path, device, done, resume=last)
    assert (done.tokens_per_second, done.median_speed) == ([], pytest.approx(wanted, rel=0.03)), "nothing was left"
    assert done.total_seconds == resumed.total_seconds


def test_a_checkpoint_of_an_earlier_version_has_no_seconds() -> None:
    log, trainer, stage = LogWindow(2, earlier_seconds=70.0), SimpleNamespace(), SimpleNamespace()
    log.on_load_checkpoint(trainer, stage, {"log_window": {"metrics": {}, "seconds": 3.0, "start": 4}})
    assert log.total_seconds == 70.0, "run.json had them"


def test_a_checkpoint_of_another_callback_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's own ModelCheckpoint does not say when it is done: the clock goes on with the next batch."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock, nothing = StepClock(), SimpleNamespace()
    clock.on_train_start(nothing, nothing)
    clock.on_validation_end(nothing, nothing)
    now[0] += 7
    assert clock.read() == 0, "a validation before the first step starts no clock"
    for begins, ends in ((10, 11), (12, 14)):
        now[0] = begins
        clock.on_train_batch_start(nothing, nothing, nothing, 0)
        now[0] = ends
        clock.on_train_batch_end(nothing, nothing, nothing, nothing, 0)
    assert clock.total_seconds == 4
    clock.on_save_checkpoint(nothing, nothing, {})
    now[0] = 100
    clock.on_train_batch_start(nothing, nothing, nothing, 0)
    now[0] = 101
    clock.on_train_end(nothing, nothing)
    assert clock.total_seconds == 5


# Memory.


def test_the_peak_is_that_of_the_trainers_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A GPU that the machine has beside it does not count, nor what it held before the training."""
    assert peak_memory_bytes(torch.device("cpu")) > 2**20
    peaks = {torch.device("cuda", 0): 99, torch.device("cuda", 1): 7}

    def reset(device: torch.device) -> None:
        peaks[device] = 5

    counting = SimpleNamespace(max_memory_allocated=peaks.__getitem__, reset_peak_memory_stats=reset)
    monkeypatch.setattr(memory_peak.torch, "get_device_module", lambda device: counting)
    second = torch.device("cuda", 1)
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=second))
    LogWindow(1).setup(trainer, SimpleNamespace(), "validate")
    assert peak_memory_bytes(second) == 7
    LogWindow(1).setup(trainer, SimpleNamespace(), "fit")
    assert peak_memory_bytes(second) == 5
    assert peak_memory_bytes(torch.device("cuda", 0)) == 99


def test_every_training_begins_with_a_new_peak(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []
    monkeypatch.setattr(step_logging, "reset_peak_memory", lambda device: asked.append(f"reset {device}"))
    monkeypatch.setattr(step_logging, "peak_memory_bytes", lambda device: asked.append(str(device)) or 3)
    stage = build_stage("finetune", tmp_path, trainer={"max_steps": 1})
    fit(stage, batches_of("finetune", 1), tmp_path, [LogWindow(1)])
    assert asked == ["reset cpu", "cpu"]


def test_an_earlier_peak_of_the_process_is_forgotten() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system cannot reset it")
    cpu = torch.device("cpu")

    def forgotten() -> int:
        # Not of malloc, which may take memory that the process holds already, and keeps it.
        large = mmap.mmap(-1, 2**28)
        torch.frombuffer(large, dtype=torch.uint8).fill_(1)
        before = peak_memory_bytes(cpu)
        large.close()
        reset_peak_memory(cpu)
        return before - peak_memory_bytes(cpu)

    # Of a process with other threads, one reading may be taken while the system counts.
    assert max(forgotten() for _ in range(3)) > 2**27
