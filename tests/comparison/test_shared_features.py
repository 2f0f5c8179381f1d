"""Arms of a comparison on a frozen encoder train on features of their own pictures, those they are scored on."""

import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console

from datamodules.storage.sample_store import SampleStore
from datamodules.storage.writer import ShardWriter
from fvl_lightning.comparison import run as comparison_run
from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.comparison.plan import SeedPlan
from fvl_lightning.comparison.runner import Runner, warm_feature_cache
from fvl_lightning.core.config.loading import check_config, choose
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.evaluation.scoring import open_model
from fvl_lightning.launchers.local import LocalLauncher
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.setup import attach_features, build_stage, build_training, data_context, prepare_data
from fvl_lightning.tracking.null import NullTracker
from fvl_lightning.training.distributed.process_group import Ranks
from fvl_lightning.training.feature_cache import build_feature_cache
from tests.conftest import Run
from tests.integration.test_comparison import start, workplace
from tests.tiny_models import experiment, tiny_model


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


def test_features_are_of_the_encoder_that_the_stages_start_from(tmp_path: Path, shards: Path) -> None:
    tiny_model(seed=7, fusion="gated", normalize=True).save_pretrained(tmp_path / "model")
    started = dataclasses.replace(arm(tmp_path, shards, {}), init_from=[str(tmp_path / "model")])
    warm_feature_cache(None, SeedPlan(None, {"a": [started]}, {}), Console(file=io.StringIO()))
    before = sorted((tmp_path / "cache").rglob("*.npy"))
    build_training(started, Ranks())
    assert before
    assert sorted((tmp_path / "cache").rglob("*.npy")) == before, "the training computed other features"


def widened(there: Path, wide: Path) -> None:
    """The splits of the demo set, every picture three times as wide as high."""
    for split in ("train", "validation", "test"):
        store = SampleStore.open(there, split)
        with ShardWriter(wide, split, 1000) as writer:
            for sample in range(len(store)):
                content = io.BytesIO()
                Image.fromarray(store.images(sample)[0]).resize((96, 32)).save(content, "PNG")
                writer.write(store.key(sample), store.record(sample), [content.getvalue()])


@pytest.mark.slow
def test_a_comparison_of_pictures_trains_and_scores_each_arm_on_its_own(
    tmp_path: Path, tiny_data: Path, empty_store: Path, fvl_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = {"data.image_fit": ["stretch", "pad"]}
    words = ["trainer.batch_size=8", "trainer.max_steps=3", "trainer.evaluate=null"]
    folder = workplace(tmp_path, tiny_data, empty_store, arms={}, axes=axes, seeds=[0], set=words)
    widened(next(tiny_data.glob("demo/*/train-000000.tar")).parent, folder / "wide")
    for name, view in {"encoder_pretrain.yaml": "tasks", "finetune.yaml": "conversation"}.items():
        data = {"name": "shards", "root": str(folder / "wide"), "view": view, "sequence_length": 96}
        values = yaml.safe_load((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(yaml.safe_dump({**values, "data": data}, sort_keys=False), encoding="utf-8")
    done, ran = start(folder, fvl_here)
    assert done.returncode == 0, done.stderr
    assert len(ran) == 2
    monkeypatch.chdir(folder)
    trained: dict[str, torch.Tensor] = {}
    for path in sorted((folder / "runs" / "tiny").glob("*/finetune")):
        built, data = open_model(RunFolder(path))
        cached = check_config(ExperimentConfig, RunFolder(path).config).feature_cache
        assert cached is not None
        before = sorted(Path(cached).rglob("*.npy"))
        cache = build_feature_cache(built.model.encoder.eval(), data, ["train", "validation"], Path(cached))
        assert sorted(Path(cached).rglob("*.npy")) == before, "what is scored has the features of its training"
        assert len(list(Path(cached).iterdir())) == 2 * 2, "two arms, two splits"
        with torch.no_grad():
            scored = built.model.encoder(data.pixels("train", range(8)))
        for source, features in scored.items():
            kept = torch.cat([cache("train", sample)[source] for sample in range(8)])
            assert torch.allclose(kept, features, atol=1e-4), (path, source)
        trained[data.config.image_fit] = scored["davit"]
    assert trained.keys() == {"stretch", "pad"}
    assert not torch.allclose(trained["stretch"], trained["pad"], atol=1e-2)


def test_a_cell_is_of_other_data_where_a_shard_was_edited(tmp_path: Path, shards: Path) -> None:
    """Its name, its size and its index stay; the result of what it was before is not taken for what it is."""
    plan = SeedPlan(None, {"a": [arm(tmp_path, shards, {})]}, {"a": tmp_path / "a"})
    console = Console(file=io.StringIO())

    def key(split: str = "test") -> str:
        runs = Runner(ComparisonConfig(), LocalLauncher(1), console, NullTracker(), False, False, True)
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
    monkeypatch.setattr(comparison_run, "prepare_data", lambda experiment: data)
    monkeypatch.setattr(RunFolder, "experiment", lambda run: None)
    monkeypatch.setattr(comparison_run, "score_encoder", lambda run: next(scores))
    run = RunFolder.create(tmp_path, "encoder", {"stage": {"name": "encoder_pretrain"}})
    for _ in range(2):
        comparison_run.score_encoders({0: run}, comparison_run.show_nothing)
        assert run.info["scores"] == {"words": 0.5}
    data.content = "after"
    comparison_run.score_encoders({0: run}, comparison_run.show_nothing)
    assert run.info["scores"] == {"words": 0.75}
