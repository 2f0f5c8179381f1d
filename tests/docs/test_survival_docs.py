"""docs/survival.md: what it names exists."""

import re
from pathlib import Path

import pytest

from fvl_lightning.core.config.fields import keys_that_change
from fvl_lightning.core.config.loading import check_config
from fvl_lightning.core.errors import EXIT_INTERRUPTED, EXIT_REQUEUE, EXIT_USAGE_ERROR
from fvl_lightning.core.experiment import ExperimentConfig
from tests.conftest import ROOT, Run

PAGE = (ROOT / "docs" / "survival.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)


def test_exit_codes() -> None:
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, flags=re.MULTILINE)] == [
        0, EXIT_USAGE_ERROR, EXIT_REQUEUE, EXIT_INTERRUPTED,
    ]  # fmt: skip


@pytest.mark.parametrize("command", [line for block in BLOCKS for line in block.splitlines() if line[:4] == "fvl "])
def test_commands_are_known(command: str, tmp_path: Path, fvl_here: Run) -> None:
    """They are understood as far as the file that is not there."""
    done = fvl_here(tmp_path, *command.split()[1:])
    assert done.returncode == EXIT_USAGE_ERROR
    assert command.split()[2] in done.stderr


def test_what_may_change_on_a_resume_is_listed() -> None:
    config = check_config(ExperimentConfig, {"data": {"name": "shards", "root": "x"}})
    paragraph = PAGE[PAGE.index("Free to change") :].split("\n\n")[0]
    assert set(re.findall(r"`([\w.]+)`", paragraph)) == keys_that_change(config, "nothing")
