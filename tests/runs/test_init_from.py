"""What a training starts from: an earlier run, or a model folder on its own."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fvl_lightning.runs import setup
from fvl_lightning.runs.folder import RunFolder
from tests.conftest import TINY, Run, furnish
from tests.thread_ranks import on_ranks
from tests.tiny_models import experiment

FINETUNE = "experiments/demo/finetune.yaml"


def test_a_model_folder_gives_the_weights_of_its_run(tmp_path: Path, tiny_data: Path, fvl_here: Run) -> None:
    folder = furnish(tmp_path, tiny_data)
    assert fvl_here(folder, "train", FINETUNE, *TINY, "name=first").returncode == 0
    first = folder / "runs" / "first"
    (first / "model").rename(folder / "imported")
    (first / "model").symlink_to(folder / "imported")
    for name, start in (("by_run", "runs/first"), ("by_folder", "imported")):
        done = fvl_here(folder, "train", FINETUNE, *TINY, f"name={name}", f"init_from=[{start}]")
        assert done.returncode == 0, done.stderr
        assert "the same images become other" not in done.stderr
    for start in ("runs/first", "imported"):
        other = fvl_here(folder, "train", FINETUNE, *TINY, "name=pad", f"init_from=[{start}]", "data.image_fit=pad")
        (said,) = [line for line in other.stderr.splitlines() if "the same images become other" in line]
        assert f"init_from: {start} was trained with data.image_fit stretch, and here it is pad, so that" in said
        assert said.rstrip().endswith("set data.image_fit=stretch to keep them")
    by_run, by_folder = (RunFolder(folder / "runs" / name) for name in ("by_run", "by_folder"))
    weights, others = (load_file(run.model / "model.safetensors") for run in (by_run, by_folder))
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    (parent,) = by_folder.info["init_from"]
    assert (parent["run"], parent["run_id"]) == ("imported", None)
    assert parent["components"] == by_run.info["init_from"][0]["components"]
    assert set(parent["components"]) >= {"encoder", "fusion", "projector", "language_model"}


@pytest.mark.parametrize(
    ("quantization", "places"), [(None, ["cpu: loaded", "meta: "]), ("4bit", ["cpu: loaded", "cpu: loaded"])]
)
def test_only_what_is_quantised_is_loaded_by_every_rank(
    quantization: Any, places: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rank makes the 4 bits and their scales of its own copy of the weights."""

    def load(stage: Any, _: Any) -> list[dict[str, Any]]:
        stage.loaded = "loaded"
        return [{"run": "a"}]

    monkeypatch.setattr(setup, "build_stage", lambda _, device: SimpleNamespace(on=device, loaded="", frozen_hash="0"))
    monkeypatch.setattr(setup, "start_from", load)
    config = experiment(
        tmp_path, "finetune", "conversation", trainable={"language_model": "lora"},
        lora={"quantization": quantization}, trainer={"strategy": "ddp", "devices": 2},
    )  # fmt: skip
    found = on_ranks(2, lambda ranks: setup.weighted_stage(config, ranks))
    assert [f"{stage.on}: {stage.loaded}" for stage, _ in found] == places
    assert [parents for _, parents in found] == [[{"run": "a"}]] * 2
