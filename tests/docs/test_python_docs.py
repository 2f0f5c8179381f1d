"""docs/python.md: every block of code runs, in order, on the tiny data and in as many steps as the page names.

Its comparison is one that was run before; tests/api/test_comparison.py runs a small one.
"""

import logging
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import fvl_lightning
from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.core.config.loading import load_config
from tests.conftest import ROOT, TINY_DATA

TEXT = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
FASTER = {"max_steps": 20, "batch_size": 4, "validate_every": 10, "checkpoint_every": 20, "threads": 1}


@pytest.fixture
def folder(tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of the page, its experiment a tiny one."""
    for name, target in (("docs", ROOT / "docs"), ("data", tiny_data)):
        (tmp_path / name).symlink_to(target)
    (tmp_path / "experiments" / "demo").mkdir(parents=True)
    data = {word.removeprefix("data.").split("=")[0]: int(word.split("=")[1]) for word in TINY_DATA}
    experiment = {
        "base": str(ROOT / "experiments" / "demo" / "finetune.yaml"),
        "data": data,
        "trainer": FASTER,
        "tracking": {"enabled": False},
    }
    (tmp_path / "experiments" / "demo" / "finetune.yaml").write_text(yaml.safe_dump(experiment), encoding="utf-8")
    (tmp_path / "experiments" / "demo" / "quick").symlink_to(ROOT / "experiments" / "demo" / "quick")
    monkeypatch.setattr("fvl_lightning.api.comparison.run_comparison", compared_before)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "level", logging.ERROR)
    return tmp_path


def compared_before(path: Path, overrides: list[str], *_: Any, origin: str) -> Path:
    """Checks the configuration of a comparison, and leaves the results of docs/findings.md in its folder."""
    config = load_config(ComparisonConfig, path, overrides, origin)
    assert (config.jobs, config.seeds) == (2, [0, 1, 2])
    folder = Path(config.output) / config.name
    folder.mkdir()
    shutil.copy(ROOT / "benchmarks" / "results" / "fusions.json", folder / "comparison.json")
    return folder


@pytest.mark.slow
def test_the_page_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    threads = torch.get_num_threads()
    try:
        for block in BLOCKS:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exec(compile(block, "docs/python.md", "exec"), names)
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert "gated 20 0.003" in printed
    assert "fusion in the overrides: unknown fusion 'gate', allowed:" in printed
    assert "runs/python finished" in printed
    assert names["adapted"].lora.rank == 8
    assert names["experiment"].lora is None
    assert names["steps"][-1] == 20
    assert {"train/loss", "validation/loss", "learning_rate/fusion"} <= set(names["metrics"])
    sources = ["davit", "caption", "ocr", "grounding"]
    assert list(names["weights"].weights) == list(names["shapes"]) == names["model"].sources == sources
    assert len(names["answers"]) == 2
    assert all(isinstance(names[text], str) for text in ("answer", "first", "second"))
    assert names["evaluation"].scores.by_kind.keys() == {kind for kind, _, _ in names["rows"]}
    assert len(names["table"]) == 7 * 5
    assert (folder / "models" / "python" / "model.safetensors").is_file()
    assert (folder / "logs" / "python" / "version_0" / "metrics.csv").is_file()


def test_the_page_names_every_public_name_of_the_api() -> None:
    imported = re.findall(r"^(?: *)from fvl_lightning import (.*)$", TEXT, re.MULTILINE)
    shown = {name.strip() for names in imported for name in names.split(",")}
    shown |= {"quiet_libraries", "DataError", "import_plugins", "evaluate_tasks"}
    assert {name for name in fvl_lightning.__all__ if not name.startswith("FlorenceVL")} == shown
