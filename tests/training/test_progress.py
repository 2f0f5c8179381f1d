"""The log lines of a training without a terminal: its start, its progress and its losses."""

import re
from pathlib import Path

import pytest

from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.training import progress
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
