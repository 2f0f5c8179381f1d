"""Processes of one machine: what one exit code and one sentence make of all of theirs."""

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
