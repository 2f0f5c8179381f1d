"""Arms of a comparison on a frozen encoder train on features of their own pictures, those they are scored on."""

import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from datamodules.writer import ShardWriter
from fvl_lightning.commands import compare
from fvl_lightning.commands.arms import SeedPlan
from fvl_lightning.commands.cell_runs import CellRuns, warm_feature_cache
from fvl_lightning.commands.launchers import LocalLauncher
from fvl_lightning.commands.train import attach_features, build_stage, data_context, prepare_data
from fvl_lightning.core.comparison import ComparisonConfig
from fvl_lightning.core.config import choose
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.training.ranks import Ranks
from fvl_lightning.training.run_folder import RunFolder
from tests.tiny_models import experiment


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Pictures three times as wide as high."""
    for split in ("train", "validation", "test"):
        with ShardWriter(tmp_path / "shards", split, 100) as writer:
            for number in range(4):
                content = io.BytesIO()
                pixels = np.random.default_rng(number).integers(0, 256, (16, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(content, "PNG")
                writer.write(f"s{number}", {"caption": "w5 w6"}, [content.getvalue()])
    return tmp_path / "shards"


def arm(folder: Path, shards: Path, data: Mapping[str, Any], fusion: str = "gated") -> ExperimentConfig:
    found = experiment(folder, "pretrain", "caption", fusion=fusion, trainable={"encoder": "frozen"})
    entry = {"name": "shards", "root": str(shards), "view": "caption", **data}
    return dataclasses.replace(
        found, data=choose("data", entry), feature_cache=str(folder / "cache"), output=str(folder / "runs")
    )


def test_an_axis_of_pictures_gives_each_arm_features_of_its_own(tmp_path: Path, shards: Path) -> None:
    arms = {
        "stretch": [arm(tmp_path, shards, {"image_fit": "stretch"})],
        "pad": [arm(tmp_path, shards, {"image_fit": "pad"})],
        "crop": [arm(tmp_path, shards, {"image_fit": "crop"})],
        "other_fusion": [arm(tmp_path, shards, {"image_fit": "stretch"}, "concat")],
    }
    warm_feature_cache(None, SeedPlan(None, arms, {}), Console(file=io.StringIO()))
    assert len(list((tmp_path / "cache").iterdir())) == 2 * 3, "arms whose features are equal share them"
    trained: dict[str, dict[str, torch.Tensor]] = {}
    for name, (stage_of_arm,) in arms.items():
        data, stage = prepare_data(stage_of_arm), build_stage(stage_of_arm)
        data.connect(data_context(stage.model, stage.tokenizer, stage_of_arm))
        attach_features(stage, data, stage_of_arm, Ranks())
        batch = next(iter(data.train_dataloader()))
        indices = [int(key.removeprefix("s")) for key in batch.keys]
        with torch.no_grad():
            scored = stage.model.encoder(data.pixels("train", indices))
        for source, feature in batch.features.items():
            assert torch.allclose(feature, scored[source], atol=1e-5), (name, source)
        order = torch.tensor(indices).argsort()
        trained[name] = {source: feature[order] for source, feature in batch.features.items()}
    assert len(list((tmp_path / "cache").iterdir())) == 2 * 3, "nothing was computed again"
    for one, other in (("stretch", "pad"), ("stretch", "crop"), ("pad", "crop")):
        assert not torch.allclose(trained[one]["davit"], trained[other]["davit"], atol=1e-3), (one, other)
    assert torch.equal(trained["stretch"]["davit"], trained["other_fusion"]["davit"])


def test_a_cell_is_of_other_data_where_a_shard_was_edited(tmp_path: Path, shards: Path) -> None:
    """Its name, its size and its index stay; the result of what it was before is not taken for what it is."""
    plan = SeedPlan(None, {"a": [arm(tmp_path, shards, {})]}, {"a": tmp_path / "a"})
    console = Console(file=io.StringIO())

    def key(split: str = "test") -> str:
        runs = CellRuns(ComparisonConfig(), LocalLauncher(1), console, None, False, False, True)
        (cell,), _ = runs.run({0: plan}, {"a": {}}, split)
        return cell.key

    before = key()
    assert key() == before
    for name in ("train", "test"):
        tar = shards / f"{name}-000000.tar"
        content = tar.read_bytes()
        tar.write_bytes(content.replace(b"w5 w6", b"w6 w5"))
        assert key() != before, name
        tar.write_bytes(content)
    assert key() == before


def test_an_encoder_is_scored_again_on_other_test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Data:
        """A data module, of which nothing but the content is asked."""

        content = "before"

        def content_hash(self, splits: list[str]) -> str:
            assert splits == ["test"]
            return self.content

    data, scores = Data(), iter([{"words": 0.5}, {"words": 0.75}])
    monkeypatch.setattr(compare, "prepare_data", lambda experiment: data)
    monkeypatch.setattr(compare, "check_config", lambda schema, config: None)
    monkeypatch.setattr(compare, "score_encoder", lambda run: next(scores))
    run, console = RunFolder.create(tmp_path, "encoder", {"stage": {"name": "encoder_pretrain"}}), Console(quiet=True)
    for _ in range(2):
        compare.score_encoders({0: run}, console)
        assert run.info["scores"] == {"words": 0.5}
    data.content = "after"
    compare.score_encoders({0: run}, console)
    assert run.info["scores"] == {"words": 0.75}
