"""docs/survival.md: its job script asks for a requeue when it should, and what it names exists."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from fvl_lightning.commands.console import INTERRUPTED, MISTAKE, REQUEUE
from tests.conftest import ROOT, Run

PAGE = (ROOT / "docs" / "survival.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (MISTAKE, False), (REQUEUE, True), (INTERRUPTED, False)])
def test_the_job_script(code: int, requeued: bool, tmp_path: Path) -> None:
    (script,) = [block for block in BLOCKS if "#SBATCH" in block]
    (tmp_path / "job.sh").write_text(script, encoding="utf-8")
    for name, body in (("srun", f'echo "$@" > srun.txt; exit {code}'), ("scontrol", 'echo "$@" > scontrol.txt')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", "job.sh"], cwd=tmp_path, env=environment, timeout=20, check=False)
    assert done.returncode == code
    assert (tmp_path / "srun.txt").read_text().startswith("fvl train experiments/demo/finetune.yaml --resume-or-start")
    assert (tmp_path / "scontrol.txt").exists() == requeued
    if requeued:
        assert (tmp_path / "scontrol.txt").read_text() == "requeue 7\n"


def test_exit_codes() -> None:
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, flags=re.MULTILINE)] == [
        0, MISTAKE, REQUEUE, INTERRUPTED,
    ]  # fmt: skip


@pytest.mark.parametrize("command", [line for block in BLOCKS for line in block.splitlines() if line[:4] == "fvl "])
def test_commands_are_known(command: str, tmp_path: Path, fvl_here: Run) -> None:
    """They are understood as far as the file that is not there."""
    done = fvl_here(tmp_path, *command.split()[1:])
    assert done.returncode == MISTAKE
    assert command.split()[2] in done.stderr
