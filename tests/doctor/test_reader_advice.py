"""`fvl doctor` advises which of `shards` and `webdataset` fits the training shards."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from datamodules.storage.shard_cache import ShardCache
from datamodules.webdataset import WebDatasetData
from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.doctor.shards import _reader, check_shards, count_samples

REMOTE = ["s3://bucket/train-000000.tar"]


@pytest.mark.parametrize(
    ("streams", "shards", "size", "status", "sentence"),
    [
        (True, ["train-000000.tar"], 0, "warning", "webdataset streams local shards"),
        (True, REMOTE, 0, "ok", "webdataset fits: it streams 1 remote shard without"),
        (False, REMOTE, 99, "warning", "more than the cache keeps"),
        (False, REMOTE, 5, "ok", "shards fits"),
    ],
)
def test_the_advice_has_a_reason(streams: bool, shards: list[str], size: int, status: str, sentence: str) -> None:
    store = SimpleNamespace(bytes_per_shard=[size])
    data: Any = SimpleNamespace(STREAMS=streams, cache=ShardCache(Path(), 50), store=lambda split: store)
    (found,) = _reader(data, shards)
    assert found.status == status
    assert sentence in found.message


def test_local_shards_that_are_indexed_need_no_advice() -> None:
    assert not list(_reader(SimpleNamespace(STREAMS=False, cache=None), ["train-000000.tar"]))  # type: ignore[arg-type]


def test_the_training_shards_of_a_stream_need_no_index(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    (drawn,) = Path("data/demo").glob("easy-*")
    folder = Path(shutil.copytree(drawn, "shards"))
    config = load_config(ExperimentConfig, Path("experiments/demo/webdataset.yaml"), [f"data.root={folder}"])
    data = config.data.component(config.data.config)
    assert isinstance(data, WebDatasetData)
    for index in folder.glob("train-*.index.safetensors"):
        index.unlink()
    first, *others = check_shards(config, data)
    assert first.message.startswith("train: 1 shard, validation: 1 shard, ")
    assert [finding.check for finding in others] == ["reader"]
    assert count_samples(data) is None
    assert not list(folder.glob("train-*.index.safetensors"))
