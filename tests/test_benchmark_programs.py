"""Every program of benchmarks/ runs, at a quick size, and saves its numbers."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from fvl_lightning import load_experiment
from fvl_lightning.core import registry
from fvl_lightning.runs.run import run_training
from tests.conftest import ROOT

import datamodules.storage.wds  # noqa: F401  isort: skip
import webdataset.utils  # isort: skip  (after datamodules.storage.wds, which makes it safe)

PROGRAMS = {
    "comparison_statistics": ("--tables", "20", "--image-tables", "2"),
    "controls": ("--run", "RUN", "--output", "evaluations", "--limit", "4"),
    "loader": ("--images", "200", "--repeats", "1", "--samples", "2000"),
    "loss_head": ("--rounds", "1", "--vocabulary", "2000", "--rows", "64", "--width", "8"),
    "packed_attention": ("--repeats", "1", "--tokens", "4096"),
    "planted_effects": ("--alike", "2", "--planted", "2"),
    "scoring": ("--run", "RUN", "--images", "2", "--repeats", "1"),
    "shards": ("--images", "20", "--repeats", "1", "--index-samples", "1000"),
    "start": (str(ROOT), "--repeats", "1"),
    "tracking": ("--steps", "10"),
}
"""{program: the options of its quick size}; RUN is a run of three steps."""


def test_every_program_has_a_quick_size() -> None:
    programs = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"recording"}
    assert programs == set(PROGRAMS)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    sizes = {"train_images": 48, "validation_images": 8, "test_images": 24, "unseen_images": 4}
    data = [f"data.{name}={size}" for name, size in sizes.items()]
    trainer = ("trainer.max_steps=3", "trainer.batch_size=8", "tracking.enabled=false", "feature_cache=null")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = (*data, *trainer, f"output={folder}", "trainer.accelerator=cpu")
        return run_training(load_experiment(ROOT / "experiments/demo/finetune.yaml", *words)).path


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_runs(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder, words = tmp_path, PROGRAMS[name]
    if "RUN" in words:
        path = request.getfixturevalue("run")
        folder, words = path.parent, tuple(str(path) if word == "RUN" else word for word in words)
    registry.names("encoder")
    encoders, threads = dict(registry._components["encoder"]), torch.get_num_threads()
    file = ROOT / "benchmarks" / f"{name}.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where the run has its data
        patch.syspath_prepend(str(file.parent))
        patch.setattr(sys, "argv", [str(file), *words])
        patch.setenv("WDS_SECURE", "0")  # as two of them set it; it is put back
        patch.setattr(webdataset.utils, "enforce_security", False)
        import recording  # type: ignore[import-not-found]

        patch.setattr(recording, "RESULTS", tmp_path / "results")
        try:
            runpy.run_path(str(file), run_name="__main__")
        finally:
            registry._components["encoder"] = encoders
            torch.set_num_threads(threads)
            del sys.modules["recording"]
    (saved,) = (tmp_path / "results").iterdir()
    assert saved.name == f"{name}.json"
    result = json.loads(saved.read_text(encoding="utf-8"))
    assert result.keys() > {"machine"}
