"""Trainings as the tests stop and resume them, and what makes two of them the same."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.tracking.metrics_log import read_metrics
from tests.conftest import ONE_THREAD

FINETUNE = (
    "experiments/demo/finetune.yaml",
    "language_model.model.attention_dropout=0.1",  # so that the state of the random numbers counts
)
ENCODER = ("experiments/demo/encoder_pretrain.yaml", "encoder.model.text_config.dropout=0.1", "trainer.accumulate=2")
PACKED = (*FINETUNE, "data.packing=best_fit", "data.sequence_length=160", "data.workers=2", "trainer.accumulate=2")
TILED = (*PACKED, "data.sequence_length=256", "data.tiles={max: 4, marks: rows}", "encoder.image_size=32")
STEPS = (
    "trainer.max_steps=12", "trainer.batch_size=8", "trainer.log_every=1", "trainer.validate_every=4",
    "trainer.checkpoint_every=5", "optimizer.warmup_steps=3",
)  # fmt: skip
UNTRACKED = "tracking.enabled=false"
TIMINGS = ("train/tokens_per_second", "train/step_seconds", "machine/peak_memory_bytes")

StopAt = Callable[..., None]
"""(batches, signal or error) -> arms it."""
Straight = Callable[[tuple[str, ...]], RunFolder]
"""The words of an experiment -> its run that nothing stopped."""


def curves(run: RunFolder) -> dict[str, list[tuple[int, float]]]:
    """Everything logged but timings, by name."""
    names = {name for entry in read_metrics(run.metrics) for name in entry}
    return {name: run.curve(name) for name in names - {"step", "time", "note", *TIMINGS}}


def assert_same_run(one: RunFolder, other: RunFolder) -> None:
    """Bit-equal weights, and the same values at the same steps."""
    weights, others = (load_file(run.model / "model.safetensors") for run in (one, other))
    assert weights.keys() == others.keys()
    differ = [name for name in weights if not torch.equal(weights[name], others[name])]
    assert not differ, f"{len(differ)} of {len(weights)} tensors differ, such as {differ[0]}"
    assert curves(one) == curves(other)


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """`fvl <words>` in a process and a process group of its own."""
    command = [sys.executable, "-m", "fvl_lightning", *words]
    return subprocess.Popen(
        command, cwd=folder, env=os.environ | ONE_THREAD, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float) -> None:
    """Waits until `condition`; fails where the process ends before."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def free_port() -> int:
    """A port of this machine that nobody uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
