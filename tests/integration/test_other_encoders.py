"""Encoders without prompts through the command line: `fvl train`, a second stage on its result, and back to a model."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from fvl_lightning.modeling.build import load_model
from fvl_lightning.runs.folder import RunFolder
from tests.conftest import TINY, Run
from tests.encoders.towers import CLIP, DINOV2, DINOV3, SIGLIP

PRETRAIN, FINETUNE = "experiments/demo/pretrain.yaml", "experiments/demo/finetune.yaml"
SIXTY_FOUR = {"image_size": 64, "patch_size": 16}
ENCODERS: dict[str, dict[str, Any]] = {
    "clip": {"name": "hf_vision", "model": CLIP | SIXTY_FOUR, "sources": ["layer_2", "last"]},
    "siglip": {"name": "hf_vision", "model": SIGLIP | SIXTY_FOUR, "sources": ["layer_2", "last"]},
    "dinov2": {"name": "hf_vision", "model": DINOV2 | {"patch_size": 16}, "sources": ["last"], "image_size": 64},
    "dinov3": {"name": "hf_vision", "model": DINOV3 | {"patch_size": 16}, "sources": ["last"], "image_size": 64},
    "ensemble": {
        "name": "ensemble",
        "members": {
            "siglip": {"name": "hf_vision", "model": SIGLIP | SIXTY_FOUR},
            "dino": {"name": "hf_vision", "model": DINOV2, "image_size": 32, "sources": ["layer_1"]},
        },
    },
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name in ("clip", "ensemble") else pytest.param(name, marks=pytest.mark.slow) for name in ENCODERS]
)
def test_two_stages(workspace: Path, fvl_here: Run, name: str) -> None:
    """Trained end to end on captions, then frozen, on conversations, from that run and from kept features."""
    (workspace / "mine.yaml").write_text(yaml.safe_dump({"encoder": ENCODERS[name]}), encoding="utf-8")
    for file, base in (("first.yaml", PRETRAIN), ("second.yaml", FINETUNE)):
        text = yaml.safe_dump({"base": [base, "mine.yaml"]})
        (workspace / file).write_text(text, encoding="utf-8")
    first = fvl_here(workspace, "train", "first.yaml", *TINY, "name=first", "trainable.encoder=full")
    assert first.returncode == 0, first.stderr
    words = ("name=second", "init_from=[runs/first]", "feature_cache=kept")
    second = fvl_here(workspace, "train", "second.yaml", *TINY, *words)
    assert second.returncode == 0, second.stderr
    before, after = (RunFolder(workspace / "runs" / run) for run in ("first", "second"))
    assert before.info["components"]["encoder"]["trainable"] > 0
    assert after.info["components"]["encoder"]["trainable"] == 0
    assert before.info["encoder_hash"] == after.info["encoder_hash"]
    weights, start = (load_file(run.model / "model.safetensors") for run in (after, before))
    encoder = [key for key in weights if key.startswith("encoder.")]
    assert encoder
    assert all(torch.equal(weights[key], start[key]) for key in encoder)
    model = load_model(after.model).model
    assert set(weights) <= set(model.state_dict())
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in weights.items())
