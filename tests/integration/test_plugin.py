"""A fusion in one file outside the tree, the README's own: it trains, keeps the contracts, and is saved and loaded."""

import re
from pathlib import Path

import pytest

from fvl_lightning.core import registry
from fvl_lightning.core.plugins import import_plugin
from fvl_lightning.runs.folder import RunFolder
from tests.conftest import TINY, Run
from tests.contracts.checks import check_fusion
from tests.docs.readme import plugin

FINETUNE = "experiments/demo/finetune.yaml"


@pytest.fixture
def name(workspace: Path) -> str:
    """The registered name of the README's fusion, whose file is put into the workspace."""
    file, text = plugin()
    (workspace / file).write_text(text, encoding="utf-8")
    match = re.search(r'@register\("fusion", "(\w+)"\)', text)
    assert match is not None
    return match[1]


def test_it_is_a_small_file() -> None:
    _, text = plugin()
    assert len(text.strip().splitlines()) <= 30


def test_it_keeps_the_contracts_of_a_fusion(workspace: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.names("fusion")
    monkeypatch.setattr(registry, "_components", {slot: dict(known) for slot, known in registry._components.items()})
    import_plugin(plugin()[0], workspace)
    check_fusion(registry.component("fusion", name))


def test_it_trains_from_the_command_line(workspace: Path, name: str, fvl_here: Run) -> None:
    file, _ = plugin()
    words = (FINETUNE, *TINY, f"plugins=[{file}]", f"fusion={name}", "trainer.max_steps=20", "trainer.log_every=1")
    done = fvl_here(workspace, "train", *words)
    assert done.returncode == 0, done.stderr
    run = RunFolder(workspace / "runs" / "finetune")
    assert run.config["fusion"]["name"] == name
    losses = [value for _, value in run.curve("train/loss")]
    assert losses[-1] < losses[0]
    assert run.info["components"]["fusion"]["trainable"] > 0
    evaluated = fvl_here(workspace, "evaluate", "runs/finetune")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "macro" in evaluated.stdout


def test_it_is_named_in_yaml_beside_its_file(workspace: Path, name: str, fvl_here: Run) -> None:
    lab = workspace / "lab"
    lab.mkdir()
    (workspace / plugin()[0]).rename(lab / plugin()[0])
    text = f"base: ../{FINETUNE}\nplugins: [{plugin()[0]}]\nfusion: {name}\n"
    (lab / "mine.yaml").write_text(text, encoding="utf-8")
    done = fvl_here(workspace, "show", "lab/mine.yaml", *TINY)
    assert done.returncode == 0, done.stderr
    assert f"name: {name}" in done.stdout


def test_without_the_plugin_the_name_is_unknown(workspace: Path, name: str, fvl_here: Run) -> None:
    done = fvl_here(workspace, "train", FINETUNE, *TINY, f"fusion={name}")
    assert done.returncode == 2
    assert f"unknown fusion '{name}'" in done.stderr
    assert not (workspace / "runs").exists()
