"""Fewer image tokens than the map has, from the plan over packed training to scores, exports and a comparison."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from fvl_lightning.modeling.build import load_model
from fvl_lightning.runs.folder import RunFolder
from tests.conftest import TINY, TINY_DATA, Run

FINETUNE = "experiments/demo/finetune.yaml"
PACKED = (*TINY, "data.packing=best_fit", "data.sequence_length=96", "projector=pool", "fusion=gated", "name=few",
          "optimizer.warmup_steps=1")  # fmt: skip
BUDGET = {
    "name": "budget",
    "encoder_stage": "experiments/demo/encoder_pretrain.yaml",
    "stages": [FINETUNE],
    "arms": {
        "shuffled": {"set": ["projector=pixel_shuffle"]},
        "learned": {"set": ["fusion=token_concat", "projector=resampler", "projector.depth=1"]},
    },
    "match": "tokens",
    "image_tokens": 4,
    "set": [*TINY_DATA, "trainer.batch_size=8", "trainer.max_steps=3", "optimizer.warmup_steps=1"],
}

pytestmark = pytest.mark.slow


def test_a_run_with_four_tokens_for_sixteen_places(workspace: Path, fvl_here: Run) -> None:
    for verb in ("doctor", "train"):
        done = fvl_here(workspace, verb, FINETUNE, *PACKED)
        assert done.returncode == 0, done.stderr + done.stdout
    picture = workspace / "picture.png"
    Image.new("RGB", (64, 48), "red").save(picture)
    asked = ("--image", str(picture), "--prompt", "what colour is it?", "--max-tokens", "4")
    for words in (
        ("generate", "runs/few", *asked), ("evaluate", "runs/few", "--limit", "8"), ("export", "runs/few", "exported"),
        ("generate", "exported", *asked),
    ):  # fmt: skip
        done = fvl_here(workspace, *words)
        assert done.returncode == 0, done.stderr
    own, other = load_model(RunFolder(workspace / "runs" / "few").model), load_model(workspace / "exported")
    assert own.processor.tokens_per_image == other.processor.tokens_per_image == 4
    assert own.model.fusion.output.tokens == 16
    inputs = own.processor(images=Image.open(picture), text="<image> red", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(own.model(**inputs).logits, other.model(**inputs).logits)


def test_arms_of_a_comparison_get_the_same_tokens(workspace: Path, fvl_here: Run) -> None:
    (workspace / "budget.yaml").write_text(yaml.safe_dump(BUDGET, sort_keys=False), encoding="utf-8")
    done = fvl_here(workspace, "compare", "budget.yaml", "--plan")
    assert done.returncode == 0, done.stderr
    plan = json.loads((workspace / "runs" / "budget" / "plan.json").read_text(encoding="utf-8"))
    assert [stage.get("image_tokens") for stage in plan["stages"]] == [None, 4, 4]
    done = fvl_here(workspace, "compare", "budget.yaml")
    assert done.returncode == 0, done.stderr
    report = json.loads((workspace / "runs" / "budget" / "comparison.json").read_text(encoding="utf-8"))
    assert {arm: result["image_tokens"] for arm, result in report["arms"].items()} == {"shuffled": 4, "learned": 4}
    text = (workspace / "runs" / "budget" / "report.md").read_text(encoding="utf-8")
    assert "| image tokens in the language model | 4 | 4 |" in text
    done = fvl_here(workspace, "compare", "budget.yaml", "image_tokens=5", "name=other")
    assert done.returncode == 2
    assert "match: tokens: shuffled cannot make 5 tokens of an image" in " ".join(done.stderr.split())
