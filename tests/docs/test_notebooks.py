"""Every notebook runs from top to bottom where the quick demo is at hand, and is kept without outputs."""

import ast
import importlib
import json
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.experiment import ExperimentConfig
from tests.conftest import ONE_THREAD, ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PICTURES = {"01_quickstart.ipynb": 6, "02_lora_finetuning.ipynb": 6, "03_look_inside.ipynb": 4}
"""How many each shows."""
CELL_SECONDS = 900
"""A guard against a cell that hangs; the longest, a training, takes 40 s of one core that is shared with nobody."""
GUESSING = 0.25
"""What guessing reaches on the new kind of question."""
MARGIN = 0.1
"""By how much the adapter must be above that: two standard deviations of 120 answers, and some."""
FORGOTTEN = 0.1
"""By how much the mean over the old kinds may be below the base's."""


def test_there_are_these() -> None:
    assert list(PICTURES) == [path.name for path in NOTEBOOKS]


def test_the_old_kinds_that_02_mixes_in_are_those_of_the_quick_demo() -> None:
    """Whose folder is named by a hash of what is in it."""
    new, old = (
        load_config(ExperimentConfig, ROOT / "experiments" / "demo" / "quick" / name).data
        for name in ("new_kind.yaml", "finetune.yaml")
    )
    assert Path(new.config.datasets["old"].root) == old.component(old.config).folder


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 50_000
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_what_a_notebook_imports_is_there(path: Path) -> None:
    """Running it is one of the long tests, and names move."""
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    lines = [line for cell in cells for line in cell.splitlines() if not line.startswith(("%", "!"))]
    imports = [node for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, ast.ImportFrom)]
    own = [node for node in imports if node.module and node.module.startswith(("fvl_lightning", "datamodules"))]
    assert len(own) > 3
    for node in own:
        for name in node.names:
            assert hasattr(importlib.import_module(str(node.module)), name.name)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs(path: Path, quick_demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ONE_THREAD.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
    notebook = nbformat.read(path, as_version=4)
    below = quick_demo / "notebooks"  # where Jupyter starts a notebook: its folder, below the one with experiments/
    below.mkdir(exist_ok=True)
    trained = (quick_demo / "runs" / "demo-quick" / "comparison.json").stat().st_mtime_ns
    client = NotebookClient(
        notebook, timeout=CELL_SECONDS, kernel_name="python3", resources={"metadata": {"path": str(below)}}
    )
    client.execute()
    pictures = [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]  # fmt: skip
    assert len(pictures) == PICTURES[path.name]
    assert (quick_demo / "runs" / "demo-quick" / "comparison.json").stat().st_mtime_ns == trained, "nothing is redone"
    assert not any(below.iterdir()), "what it writes belongs beside experiments/"
    if path.name.startswith("02"):
        check_learnt(quick_demo)


def check_learnt(folder: Path) -> None:
    """What notebook 02 wrote: the new kind of question is learnt, the old ones are not lost."""
    (file,) = folder.glob("runs/new_kind*/before_and_after.json")
    before, after = (json.loads(file.read_text(encoding="utf-8"))[name] for name in ("base", "adapter"))
    assert before["what"] == 0, "it has never been asked"
    assert after["what"] > GUESSING + MARGIN
    old = [kind for kind in before if kind != "what"]
    assert len(old) == 10
    assert sum(after[kind] - before[kind] for kind in old) / len(old) > -FORGOTTEN
