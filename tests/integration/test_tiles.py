"""Trainings, scoring, checks and plans with images as tiles: tokens are counted alike, and models say the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.comparison.plan import experiments, plan_alike
from fvl_lightning.core.config.loading import load_config
from fvl_lightning.evaluation.answers import Scoring, answer_questions
from fvl_lightning.evaluation.cost import count_cost, mean_image_tokens, mean_tiles
from fvl_lightning.evaluation.scoring import open_model
from fvl_lightning.inference.generation import Sampling, answer, encode
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.training.feature_cache import build_feature_cache
from tests.conftest import TINY, TINY_DATA, Run, furnish

SMALL = ("encoder.image_size=32", "trainable.encoder=frozen")
"""The demo's images are 64 x 64: with tiles, 2 x 2 of them and a thumbnail, of four tokens each."""
TILES = "data.tiles={max: 4, marks: rows}"
FINETUNE = ("train", "experiments/demo/finetune.yaml", *TINY, *SMALL)
IMAGE_TOKENS = 5 * 4 + 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, fvl_here: Run) -> Path:
    """Makes a working folder with `runs/tiled`, and `runs/cached`, the same with cached features."""
    folder = furnish(tmp_path_factory.mktemp("tiled"), tiny_data)
    packed = (TILES, "data.packing=best_fit", "data.sequence_length=160")
    for name, more in (("tiled", ()), ("cached", ("feature_cache=cache",))):
        done = fvl_here(folder, *FINETUNE, *packed, *more, f"name={name}")
        assert done.returncode == 0, done.stderr
    return folder


def losses(folder: Path, name: str) -> list[float]:
    lines = (folder / "runs" / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [value for line in lines for name, value in json.loads(line).items() if name.endswith("/loss")]


@pytest.mark.slow
def test_cached_features_train_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(losses(folder, "tiled")) == 2
    assert losses(folder, "tiled") == pytest.approx(losses(folder, "cached"), rel=1e-5)
    (features,) = (folder / "cache").glob("*/train/davit.npy")
    (offsets,) = (folder / "cache").glob("*/train/offsets.npy")
    assert np.load(features).shape[0] == np.load(offsets)[-1] == 5 * 64
    monkeypatch.chdir(folder)
    loaded, data = open_model(RunFolder.open("runs/cached"), accelerator="cpu")
    encoder, written = loaded.model.encoder.eval(), features.stat().st_mtime_ns
    found = build_feature_cache(encoder, data, ["train"], Path("cache"))("train", 3)
    assert features.stat().st_mtime_ns == written, "the same tiles are not encoded again"
    torch.testing.assert_close(found["davit"], encoder(data.pixels("train", [3]))["davit"], rtol=0, atol=1e-4)
    data.config.tiles.thumbnail = False
    data.connect(data.context)
    assert build_feature_cache(encoder, data, ["validation"], Path("cache"))("validation", 0)["davit"].shape[0] == 4


def test_scoring_and_the_saved_processor_ask_as_training_does(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    run = RunFolder.open("runs/tiled")
    loaded, data = open_model(run, accelerator="cpu")
    scored = answer_questions(Scoring(loaded, data, limit=6))
    store, alone = data.store("test"), []
    for one in scored:
        ((_, image),) = store.encoded_images(one.question.index)
        messages = [
            {**message, "content": [{**part, "image": image} if part["type"] == "image" else part for part in content]}
            for message in one.question.prompt_messages
            for content in [message["content"]]
        ]
        prompt = encode(loaded, messages)
        assert prompt.ids == data.encoder.prompt(data.sized("test", one.question.index, one.question.prompt_messages))
        assert torch.equal(prompt.pixel_values, data.pixels("test", [one.question.index]))
        alone += answer(loaded, [prompt], Sampling(max_tokens=16))
    assert [one.text for one in scored] == alone
    assert mean_tiles(data) == 5
    assert mean_image_tokens(data) == IMAGE_TOKENS
    assert count_cost(run, loaded, data)["image_tokens"] == IMAGE_TOKENS


@pytest.mark.slow
def test_the_doctor_counts_the_tokens_of_images(folder: Path, fvl_here: Run) -> None:
    words = ("experiments/demo/finetune.yaml", *TINY, *SMALL, TILES)
    done = fvl_here(folder, "doctor", *words)
    counted = f"{IMAGE_TOKENS} to {IMAGE_TOKENS} tokens each, {IMAGE_TOKENS} on average"
    assert f"images cut into tiles: {counted}" in done.stdout
    assert "exactly the answers are supervised, image tokens match" in done.stdout
    short = fvl_here(folder, *FINETUNE, TILES, "data.sequence_length=20", "name=short")
    assert short.returncode == 2
    assert "20 tokens do not hold an image of 5 tiles, which has 24 tokens (4 per tile)" in short.stderr
    many = fvl_here(folder, *FINETUNE, "data.tiles={max: 65}", "name=many")
    assert many.returncode == 2
    assert "data.tiles.max" in many.stderr
    assert "must be at least 1 and at most 64, not 65" in many.stderr


def test_the_study_of_resolution_has_arms_that_train_on_the_same_rows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    path = Path("experiments/studies/resolution.yaml")
    config = load_config(ComparisonConfig, path, ["scale=tiny"])
    arms = experiments(config, path, Path("runs/resolution"), [0])[0].arms
    stages = plan_alike([arms], config.lineage)
    assert {built[-1].model.image_spec.tokens_per_image for built in stages.values()} == {4}
    planned = [
        [(one.tokens, one.side, one.tiles and (one.tiles.max, one.tiles.thumbnail, one.tiles.marks)) for one in images]
        for images in (stage.data.config.planned_images for of_arm in arms.values() for stage in of_arm)
    ]
    tiles = [(4, True, "none"), (4, True, "rows"), (4, False, "none")]
    assert planned == [[(4, 32, None), *((4, 32, one) for one in tiles)]] * 8


@pytest.mark.slow
def test_a_comparison_plans_arms_of_other_tiles_alike(folder: Path, fvl_here: Run) -> None:
    comparison: dict[str, Any] = {
        "name": "tiles",
        "stages": ["experiments/demo/finetune.yaml"],
        "arms": {"square": {"set": ["data.tiles=null"]}, "tiles": {"set": [TILES]}},
        "swept": ["data.tiles"],
        "baseline": "square",
        "seeds": [0],
        "set": [*TINY_DATA, *SMALL, "trainer.batch_size=8", "trainer.max_steps=2", "trainer.validate_every=2"],
    }
    (folder / "tiles.yaml").write_text(yaml.safe_dump(comparison), encoding="utf-8")
    done = fvl_here(folder, "compare", "tiles.yaml", "--plan", "--device", "rtx4090")
    assert done.returncode == 0, done.stderr
    tokens = {line.split("│")[1].strip(): line.split("│")[5].strip() for line in done.stdout.splitlines()[4:6]}
    assert tokens == {"square": "4", "tiles": str(IMAGE_TOKENS)}
    assert "shared features: 480 images" in done.stdout, "each of 80 images once, and as five tiles"
    (folder / "tiles.yaml").write_text(yaml.safe_dump(comparison | {"match": "tokens"}), encoding="utf-8")
    refused = fvl_here(folder, "compare", "tiles.yaml", "--plan", "--device", "rtx4090")
    assert refused.returncode == 2
    assert "the arms differ in data.tiles" in refused.stderr
