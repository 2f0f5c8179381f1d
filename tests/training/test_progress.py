"""Shows a training: its start, its progress and its losses, in a log and on a terminal."""

import io
import logging
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from fvl_lightning.core import terminal
from fvl_lightning.core.terminal import quiet_libraries
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.training import progress
from fvl_lightning.training.step_logging import LogWindow
from tests.conftest import TINY, Run

WORDS = ("experiments/demo/finetune.yaml", *TINY, "trainer.log_every=1", "trainer.validate_every=2")


def lines(output: str) -> list[str]:
    return re.findall(r"finetune(?: \(concat\))?: (.+?) *$", output, flags=re.MULTILINE)


def test_a_log_has_the_start_and_the_validations(workspace: Path, fvl_here: Run) -> None:
    done = fvl_here(workspace, "train", *WORDS)
    assert done.returncode == 0, done.stderr
    run = RunFolder(workspace / "runs" / "finetune")
    losses, (validated,) = dict(run.curve("train/loss")), run.curve("validation/loss")
    start, middle = lines(done.stderr)
    assert start == f"step 0 of 3, {run.info['trainable']:,} trainable parameters on cpu"
    assert re.sub(r", \d:\d\d:\d\d left$", "", middle) == (
        f"step 2 of 3, loss {losses[2]:.3f}, validation {validated[1]:.3f}"
    )


def test_and_a_line_now_and_then(workspace: Path, fvl_here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    done = fvl_here(workspace, "train", *WORDS)
    losses = dict(RunFolder(workspace / "runs" / "finetune").curve("train/loss"))
    for step in (1, 2, 3):
        assert any(line.startswith(f"step {step} of 3, loss {losses[step]:.3f}") for line in lines(done.stderr)), step


def test_a_terminal_has_the_folder_and_the_size_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=200, highlight=False, markup=False)
    monkeypatch.setattr(terminal, "terminal", lambda *_: console)
    shown = progress.StepProgress("mine (concat)", Path("runs/a[1]"), LogWindow(1))
    trainer = SimpleNamespace(global_step=2, max_steps=9, strategy=SimpleNamespace(root_device="cpu"))
    shown.on_train_start(trainer, torch.nn.Linear(3, 2))  # type: ignore[arg-type]
    shown.on_exception(trainer)  # type: ignore[arg-type]
    assert "runs/a[1]: step 2 of 9, 8 trainable parameters on cpu" in console.file.getvalue()  # type: ignore[attr-defined]


def test_lightning_advertises_nothing() -> None:
    quiet_libraries()
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO)  # as its import does
    for module in ("pytorch", "fabric"):
        assert not logging.getLogger(f"lightning.{module}.utilities.rank_zero").isEnabledFor(logging.INFO)
