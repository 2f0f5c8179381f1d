"""Processes of one machine: what one exit code and one sentence make of all of theirs."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from fvl_lightning.core.errors import EXIT_INTERRUPTED, EXIT_REQUEUE, EXIT_USAGE_ERROR
from fvl_lightning.launchers import ranks as processes
from fvl_lightning.launchers.ranks import run_ranks


@pytest.mark.parametrize(
    ("ends", "code", "said"),
    [
        (("exit 0", "exit 0"), 0, ""),
        (("exit 1", "exit 2"), EXIT_USAGE_ERROR, ""),
        (("exit 1", "exit 3"), 1, ""),
        (("exit 75", "exit 75"), EXIT_REQUEUE, ""),
        (("exit 75", "kill -9 $$"), EXIT_REQUEUE, ""),
        (("exit 75", "exit 2"), EXIT_USAGE_ERROR, ""),
        (("exit 130", "kill -9 $$"), EXIT_INTERRUPTED, ""),
        (("exec sleep 60", "kill -9 $$"), EXIT_REQUEUE, "error: rank 1 was ended by SIGKILL"),
        (("kill -9 $$", "kill -9 $$"), EXIT_REQUEUE, "error: rank"),
        (("exec sleep 60", "exit 75"), EXIT_REQUEUE, ""),
    ],
)
def test_one_code_and_one_sentence(
    ends: tuple[str, str], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    program = tmp_path / "fvl"
    program.write_text(f'#!/bin/bash\nif [ "$RANK" = 0 ]; then\n{ends[0]}\nfi\n{ends[1]}\n', encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(processes, "EXIT_GRACE_SECONDS", 0.5)
    monkeypatch.setattr(processes, "POLL_SECONDS", 0.02)
    monkeypatch.setattr("sys.executable", str(program))
    assert run_ranks(2, ["train"]) == code
    heard = capfd.readouterr().err
    assert heard.startswith(said)
    assert len(heard.splitlines()) == bool(said)


RANK = """#!PYTHON
import os, pathlib, signal, sys, time

def hear(*_):
    with open("heard", "a") as file:
        file.write(os.environ["RANK"] + " ")
    DEAF or sys.exit(130)

signal.signal(signal.SIGINT, hear)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
pathlib.Path("begun" + os.environ["RANK"]).touch()
while True:
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [1, 3])
def test_ctrl_c_reaches_every_rank_once_and_a_third_one_kills(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever sends it: a terminal to the whole group, or another program to this process alone."""
    program = tmp_path / "fvl"
    text = RANK.replace("PYTHON", sys.executable).replace("DEAF", str(number == 3))
    program.write_text(text, encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.executable", str(program))

    def press() -> None:
        while not all((tmp_path / f"begun{rank}").exists() for rank in range(2)):
            time.sleep(0.02)
        for _ in range(number):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)

    threading.Thread(target=press, daemon=True).start()
    if number == 3:
        with pytest.raises(KeyboardInterrupt):
            run_ranks(2, ["train"])
    else:
        assert run_ranks(2, ["train"]) == EXIT_INTERRUPTED
    heard = sorted((tmp_path / "heard").read_text(encoding="utf-8").split())
    assert heard == sorted(["0", "1"] * (2 if number == 3 else 1))
