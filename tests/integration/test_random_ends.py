"""Signals at random moments, a second and third one too: an end in time, the promised exit code, and the same bits.

The moments are drawn with a fixed seed from the time that the command takes when nothing stops it, so that they lie in
its start, in training, validation and saves, in the building of a feature cache, in scoring and at its end.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from fvl_lightning.core.errors import EXIT_INTERRUPTED, EXIT_REQUEUE
from fvl_lightning.runs.folder import RunFolder
from tests.conftest import ONE_THREAD, TINY_DATA
from tests.integration.runs import FINETUNE, UNTRACKED, assert_same_run

TRIES = int(os.environ.get("FVL_RANDOM_ENDS", "10"))
"""Ends for each command."""
END_SECONDS = 60.0
STEPS = (
    "trainer.max_steps=12", "trainer.batch_size=4", "trainer.log_every=1", "trainer.validate_every=3",
    "trainer.checkpoint_every=2", "optimizer.warmup_steps=3", "data.workers=2",
)  # fmt: skip
ONE = ("train", *FINETUNE, *TINY_DATA, *STEPS, UNTRACKED)
TWO = (*ONE, "trainer.strategy=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.stall_seconds=20")
COMPARISON: dict[str, Any] = {
    "encoder_stage": "experiments/demo/encoder_pretrain.yaml",
    "stages": ["experiments/demo/finetune.yaml"],
    "arms": {"concat": {"set": ["fusion=concat"]}, "gated": {"set": ["fusion=gated"]}},
    "seeds": [0],
    "smallest_effect": 0.01,
    "set": [*TINY_DATA, "trainer.max_steps=6", "trainer.batch_size=8", "trainer.checkpoint_every=2", "data.workers=1"],
    "tracking": {"enabled": False},
}
Words = Callable[[int], tuple[str, ...]]
"""The number of a try -> the command line after `fvl`."""
PRESSED = (signal.SIGINT,)
SENT: tuple[tuple[signal.Signals, ...], ...] = (
    PRESSED, PRESSED * 2, PRESSED * 3, (signal.SIGTERM,), (signal.SIGTERM, *PRESSED * 2), (signal.SIGKILL,),
)  # fmt: skip


def codes(sent: tuple[signal.Signals, ...], preemptible: bool) -> set[int]:
    """The exit codes that are promised; 0 where the command had ended, or had nothing left to stop."""
    cluster = EXIT_REQUEUE if preemptible else -signal.SIGTERM
    named = {signal.SIGINT: EXIT_INTERRUPTED, signal.SIGTERM: cluster, signal.SIGKILL: -signal.SIGKILL}
    return {0, *(named[one] for one in sent)}


def begin(folder: Path, words: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """`fvl <words>`, once it listens to signals: before that they are Python's."""
    with (folder / "said.txt").open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "fvl_lightning", *words], cwd=folder, env=os.environ | ONE_THREAD, stdout=said,
            stderr=said, start_new_session=True,
        )  # fmt: skip
    while process.poll() is None and threads(process.pid) < 2:
        time.sleep(0.01)
    return process


def threads(pid: int) -> int:
    """The number of threads of a process; the second one listens to signals."""
    try:
        return len(list(Path(f"/proc/{pid}/task").iterdir()))
    except OSError:
        return 0


def processes_in(folder: Path) -> Iterator[int]:
    """The processes that work in a folder, whoever started them."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                working = os.readlink(entry / "cwd")
            except OSError:  # it has ended, or is another user's
                continue
            if working == str(folder.resolve()):
                yield int(entry.name)


def finish(folder: Path, words: tuple[str, ...]) -> float:
    """Runs a command to its end; the seconds that it took."""
    began = time.monotonic()
    process = begin(folder, words)
    assert process.wait(900) == 0, (folder / "said.txt").read_text(encoding="utf-8")
    return time.monotonic() - began


def end_at_random(folder: Path, words: Words, seconds: float, seed: int, preemptible: bool = True) -> None:
    """Begins a command again and again, and ends it somewhere within the seconds that it takes."""
    draw = random.Random(seed)
    for number in range(TRIES):
        process, sent = begin(folder, words(number)), SENT[number % len(SENT)]
        try:
            process.wait(draw.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            for one in sent:
                process.send_signal(one)
                time.sleep(draw.choice([0.0, 0.3, 2.0]))
        end = time.monotonic() + END_SECONDS
        code = process.wait(END_SECONDS)
        said = (folder / "said.txt").read_text(encoding="utf-8", errors="replace")
        assert code in codes(sent, preemptible), f"{number}, {sent}: exit code {code}\n{said}"
        assert "Traceback" not in said, f"{number}, {sent}\n{said}"
        while left := list(processes_in(folder)):
            assert time.monotonic() < end, f"{number}, {sent}: {left} live on"
            time.sleep(0.1)


def assert_nothing_temporary(folder: Path) -> None:
    """No temporary file, and no lock of one, is left."""
    left = [path for path in folder.rglob(".*") if path.name.count(".") > 1]
    assert not left, left


def tensors(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of all models in a folder; a run that ended before its first checkpoint starts again as <name>-2."""
    found = {path.relative_to(folder): load_file(path) for path in folder.rglob("model*.safetensors")}
    named = {re.sub(r"(?<=[a-z])-\d+/", "/", path.as_posix()): weights for path, weights in found.items()}
    assert len(named) == len(found), "one model of each name"
    return named


def assert_same_models(one: Path, other: Path, count: int) -> None:
    """Bit-equal weights of every model in two folders."""
    models, others = tensors(one), tensors(other)
    assert models.keys() == others.keys()
    assert len(models) == count
    for path, weights in models.items():
        assert weights.keys() == others[path].keys()
        assert all(torch.equal(weights[name], others[path][name]) for name in weights), path


@pytest.mark.slow
@pytest.mark.parametrize(("words", "seed"), [(ONE, 1), (TWO, 2)], ids=["one process", "two ranks"])
def test_trainings(words: tuple[str, ...], seed: int, workspace: Path) -> None:
    seconds = finish(workspace, (*words, "name=straight"))
    job = (*words, "name=ended", "--resume-or-start")
    end_at_random(workspace, lambda _: job, seconds, seed)
    finish(workspace, job)
    (finished,) = [run for run in RunFolder.named(workspace / "runs", "ended") if run.finished]
    assert_same_run(RunFolder(workspace / "runs" / "straight"), finished)
    assert_nothing_temporary(workspace / "runs")


@pytest.mark.slow
def test_comparisons(workspace: Path) -> None:
    for name in ("straight", "ended"):
        content = yaml.safe_dump(COMPARISON | {"name": name})
        (workspace / f"{name}.yaml").write_text(content, encoding="utf-8")
    seconds = finish(workspace, ("compare", "straight.yaml", "jobs=2"))
    job = ("compare", "ended.yaml", "jobs=2")
    end_at_random(workspace, lambda _: job, seconds, 3)
    finish(workspace, job)
    assert_same_models(workspace / "runs" / "straight", workspace / "runs" / "ended", 3)
    assert not list(workspace.rglob("failure.json"))
    assert list(workspace.glob("runs/ended/feature_cache/*/train/offsets.npy"))
    assert_nothing_temporary(workspace / "runs")


@pytest.mark.slow
def test_exports(asked: Path, tmp_path: Path) -> None:
    command = ("export", str(asked / "runs" / "tiny"))
    seconds = finish(tmp_path, (*command, "straight/model"))
    end_at_random(tmp_path, lambda number: (*command, f"ended/{number}"), seconds, 4, preemptible=False)
    finish(tmp_path, (*command, "ended/model"))
    assert_same_models(tmp_path / "straight" / "model", tmp_path / "ended" / "model", 1)
    assert_nothing_temporary(tmp_path)


@pytest.mark.slow
def test_scores(asked: Path) -> None:
    """A command without a folder of its own: it ends in time, and gives the same scores when it is run again."""
    command = ("evaluate", "runs/tiny")
    seconds = finish(asked, command)
    scores = (asked / "said.txt").read_text(encoding="utf-8")
    end_at_random(asked, lambda _: command, seconds, 5, preemptible=False)
    finish(asked, command)
    assert (asked / "said.txt").read_text(encoding="utf-8") == scores
