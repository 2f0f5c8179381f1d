"""docs/lora.md says what the code does: its settings are the defaults, its commands and files exist."""

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from fvl_lightning.cli.main import app
from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.experiment import ExperimentConfig, LoraConfig
from tests.conftest import ONE_THREAD, ROOT, Run

TEXT = (ROOT / "docs" / "lora.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [
    line.split("#")[0].split() for kind, block in BLOCKS if kind == "bash" for line in block.splitlines() if line
]


def test_the_settings_shown_are_all_there_are_at_their_defaults(tmp_path: Path) -> None:
    (block,) = [text for kind, text in BLOCKS if kind == "yaml"]
    (tmp_path / "a.yaml").write_text(block, encoding="utf-8")
    assert load_config(ExperimentConfig, tmp_path / "a.yaml").lora == LoraConfig()
    assert yaml.safe_load(block)["lora"].keys() == vars(LoraConfig()).keys()


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 4


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_has_its_options(words: list[str]) -> None:
    assert words[0] == "fvl"
    command = typer.main.get_command(app).commands[words[1]]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_files_that_are_named_exist() -> None:
    for name in re.findall(r"experiments/[\w/{},]+\.yaml", TEXT):
        for size in ("3b", "8b"):
            assert (ROOT / name.replace("{3b,8b}", size)).is_file()


@pytest.mark.slow
def test_the_page_runs(quick_demo: Path, tmp_path: Path, fvl_here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands in order, the training cut short, then its Python; without the comparison, which takes long."""
    folder = tmp_path / "here"  # the names of its folders are those of other pages too
    shutil.copytree(quick_demo, folder, symlinks=True)
    monkeypatch.setattr(sys, "stdin", io.StringIO())  # `fvl chat` ends with its input
    assert [words[1] for words in COMMANDS] == ["train", "export", "export", "chat", "compare"]
    short = ("trainer.max_steps=2", "trainer.validate_every=2", "trainer.checkpoint_every=2")
    for words in COMMANDS[:-1]:
        done = fvl_here(folder, *words[1:], *(short if words[1] == "train" else ()))
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr
    (code,) = [block for kind, block in BLOCKS if kind == "python"]
    environment = os.environ | ONE_THREAD | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
