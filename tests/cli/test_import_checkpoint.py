"""`fvl import florence-vl` through the front door: what it says, and that a refusal leaves nothing behind."""

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import Run
from tests.encoders import original
from tests.modeling.conversion.original_layout import PHI, TOWER, random_weights, save

WORDS = ("import", "florence-vl", "checkpoint", "models/out", "--vision-tower", "tower")
NORM = "model.norm.weight"

Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return random_weights(PHI)


@pytest.fixture
def folder(tmp_path: Path, weights: dict[str, Tensor]) -> Path:
    """A working folder with a checkpoint in two files, and its tower's configuration."""
    save(tmp_path / "checkpoint", PHI, weights, files=2)
    shutil.copytree(original.TOWER, tmp_path / "tower")
    return tmp_path


def test_it_says_what_it_made(folder: Path, fvl_here: Run) -> None:
    done = fvl_here(folder, *WORDS)
    assert done.returncode == 0, done.stderr
    assert "models/out: " in done.stdout
    assert "17 tokens per image" in done.stdout
    assert {path.name for path in (folder / "models").iterdir()} == {"out"}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in (folder / "models" / "out").iterdir()
    }


def test_options_are_offered_by_name(folder: Path, fvl_here: Run) -> None:
    done = fvl_here(folder, *WORDS, "--pooled-token", "drop", "--prompt-pads", "mask", "--decoder", "keep")
    assert done.returncode == 0, done.stderr
    assert "16 tokens per image" in done.stdout
    refused = fvl_here(folder, *WORDS, "--pooled-token", "maybe")
    assert (refused.returncode, "'keep'" in refused.stderr) == (2, True)


def configured(**fields: Any) -> Change:
    """Other values in the checkpoint's configuration; None takes a field out."""

    def change(folder: Path) -> None:
        config = {name: value for name, value in (PHI | fields).items() if value is not None}
        (folder / "checkpoint" / "config.json").write_text(json.dumps(config), encoding="utf-8")

    return change


def tower(part: str, **fields: Any) -> Change:
    """Other values in the tower's configuration; None takes a field out."""

    def change(folder: Path) -> None:
        config = copy.deepcopy(TOWER)
        config[part] = {name: value for name, value in (config[part] | fields).items() if value is not None}
        (folder / "tower" / "config.json").write_text(json.dumps(config), encoding="utf-8")

    return change


def reweighed(change_weights: Callable[[dict[str, Tensor]], Any]) -> Change:
    """Other weights in the checkpoint."""

    def change(folder: Path) -> None:
        values = random_weights(PHI)
        change_weights(values)
        for file in (folder / "checkpoint").glob("model*"):
            file.unlink()
        save(folder / "checkpoint", PHI, values)

    return change


def without(*beginnings: str) -> Change:
    """A checkpoint without the keys that begin so."""
    return reweighed(lambda values: [values.pop(name) for name in list(values) if name.startswith(beginnings)])


def truncated(folder: Path) -> None:
    file = next((folder / "checkpoint").glob("*-00002-of-*"))
    os.truncate(file, file.stat().st_size - 100)


def indexed(content: str) -> Change:
    return lambda folder: (folder / "checkpoint" / "model.safetensors.index.json").write_text(content, encoding="utf-8")


def as_bin(content: Any) -> Change:
    """A .bin in place of the safetensors: an object to be pickled, or bytes."""

    def change(folder: Path) -> None:
        for file in (folder / "checkpoint").glob("model*"):
            file.unlink()
        file = folder / "checkpoint" / "pytorch_model.bin"
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            torch.save(content, file)

    return change


class Evil:
    """What a pickle must not be able to do."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


REFUSED: dict[str, tuple[Change, tuple[str, ...]]] = {
    "another model": (configured(model_type="llava_qwen"), ("'llava_qwen'", "llava_llama and llava_phi")),
    "plain LLaVA": (without("model.mm_projector"), ("no projector of Florence-VL", "encoder_mlp")),
    "no checkpoint": (lambda folder: shutil.rmtree(folder / "checkpoint"), ("there is no folder checkpoint",)),
    "no weights": (
        lambda folder: [file.unlink() for file in (folder / "checkpoint").glob("model*")],
        ("holds no weights", "model.safetensors or pytorch_model.bin"),
    ),
    "missing shard": (
        lambda folder: (folder / "checkpoint" / "model-00001-of-00002.safetensors").unlink(),
        ("lacks 1 of the 2 files", "model-00001-of-00002.safetensors"),
    ),
    "truncated": (truncated, ("model-00002-of-00002.safetensors is not a readable safetensors file",)),
    "index of files elsewhere": (indexed('{"weight_map": {"a": "../a.safetensors"}}'), ("'../a.safetensors'",)),
    "index without a map": (indexed('{"weights": 1}'), ("weight_map",)),
    "index that is no JSON": (indexed("{"), ("could not be read",)),
    "pickled code": (as_bin({"a": Evil()}), ("pytorch_model.bin is not a readable file of tensors",)),
    "broken .bin": (as_bin(b"PK\3\4nonsense"), ("pytorch_model.bin is not a readable file of tensors",)),
    "other things": (as_bin({"epoch": 3}), ("other things than names and tensors",)),
    "projector depth": (configured(mm_projector_type="mlp2x_gelu"), ("3 linear layers", "says 2")),
    "projector type": (configured(mm_projector_type="linear"), ("'linear'", "mlp<N>x_gelu")),
    "tower of another width": (
        tower("text_config", d_model=32), ("width 16", "d_model is 32", "--vision-tower")
    ),
    "tower of another size": (
        tower("vision_config", dim_embed=[16, 32, 64, 256]),
        ("other sizes than its configuration", "for (256,", "more"),
    ),
    "deeper tower": (tower("vision_config", depths=[1, 1, 3, 1]), ("values of the model are not in it", "more")),
    "another pooling": (tower("vision_config", image_feature_source=["last_frame"]), ("last_frame",)),
    "native tower": (tower("vision_config", dim_embed=None), ("vision_config in", "lacks dim_embed")),
    "old configuration": (
        configured(mm_hidden_size=None, mm_projector_type=None), ("lacks mm_hidden_size, mm_projector_type",)
    ),
    "size that is no number": (configured(hidden_size="16"), ("hidden_size: '16'", "whole number")),
    "rotary positions of another kind": (
        configured(rope_scaling={"type": "other"}), ("rope_scaling of type 'other'", "longrope"),
    ),
    "unknown number type": (configured(torch_dtype="float33"), ("no model can be built", "float33")),
    "key without a place": (
        reweighed(lambda values: values.update({"model.extra.weight": torch.zeros(1)})),
        ("1 of its keys have no place", "model.extra.weight"),
    ),
    "value not filled": (
        without(NORM), ("1 values of the model are not in it", "language_model.model.model.norm.weight")
    ),
    "integers": (
        reweighed(lambda values: values.update({NORM: values[NORM].int()})), ("torch.int32", "torch.bfloat16")
    ),
    "no tokenizer": (
        lambda folder: [file.unlink() for file in (folder / "checkpoint").glob("*token*")], ("--tokenizer",)
    ),
    "broken tokenizer": (
        lambda folder: (folder / "checkpoint" / "tokenizer.json").write_text("{", encoding="utf-8"),
        ("the tokenizer in checkpoint could not be read",),
    ),
    "tokenizer of another model": (
        lambda folder: original.save_tokenizer(folder / "checkpoint", 60), ("60 tokens", "table 40")
    ),
    "no tower": (
        lambda folder: shutil.rmtree(folder / "tower"), ("config.json is not in tower", "--vision-tower")
    ),
    "tower without weights": (without("model.vision_tower."), ("nor tower holds the vision tower's weights",)),
    "taken": (lambda folder: (folder / "models" / "out").mkdir(parents=True), ("models/out exists already",)),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_a_mistake_is_one_sentence_and_leaves_nothing(folder: Path, fvl_here: Run, mistake: str) -> None:
    change, said = REFUSED[mistake]
    change(folder)
    done = fvl_here(folder, *WORDS)
    assert done.returncode == 2, done.stderr
    sentence = [line for line in done.stderr.splitlines() if line]
    assert len(sentence) == 1
    assert sentence[0].startswith("error: ")
    for words in said:
        assert words in sentence[0]
    assert "Traceback" not in done.stderr
    models = folder / "models"
    assert not models.exists() or [path.name for path in models.iterdir()] == (["out"] if mistake == "taken" else [])
    assert not (folder / "evil").exists()
