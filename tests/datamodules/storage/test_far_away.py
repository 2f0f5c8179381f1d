"""From a source to a bucket and back into batches: shards that never lie in a folder of this machine as a whole."""

from collections import Counter
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest

from datamodules.building.builder import build_shards
from datamodules.building.config import BuildConfig
from datamodules.shards import ShardsData
from datamodules.storage.remote import list_names
from fvl_lightning.core.config.loading import check_config
from fvl_lightning.core.types import DataContext
from tests.datamodules.test_round_trip import as_llava_json

COUNT = 24


@pytest.fixture
def recipe(tmp_path: Path, image_bytes: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """24 rows of one image each, shards of 4, half of them validation."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "source").mkdir()
    fields, _ = as_llava_json(tmp_path / "source", [[image_bytes(10 * i, (40, 30))] for i in range(COUNT)])
    splits = {"train": 0.6, "validation": 0.4}
    return {"source": fields, "samples_per_shard": 4, "processes": 1, "splits": splits}


def test_built_into_a_bucket_and_trained_on_from_there(
    tmp_path: Path, recipe: dict[str, Any], bucket: Any, make_context: Callable[..., DataContext]
) -> None:
    local = build_shards(check_config(BuildConfig, recipe | {"output": str(tmp_path / "local")}))
    root = f"s3://{bucket.name}/mine"
    built = build_shards(check_config(BuildConfig, recipe | {"output": root}))
    assert built.shards == local.shards
    assert sorted(list_names(root)) == sorted(path.name for path in (tmp_path / "local").iterdir())
    for file in (tmp_path / "local").iterdir():
        assert bucket.Object(f"mine/{file.name}").get()["Body"].read() == file.read_bytes()
    assert not list((tmp_path / "cache").rglob("*.tar"))
    again = build_shards(check_config(BuildConfig, recipe | {"output": root}))
    assert again.already_complete

    context = make_context(batch_size=3)
    batches = {}
    for place in (root, str(tmp_path / "local")):
        data = ShardsData(ShardsData.Config(root=place, cache_gigabytes=2e-5))
        data.prepare_data()
        data.connect(context)
        batches[place] = list(islice(data.val_dataloader(), 2))
    far, near = batches.values()
    for one, other in zip(far, near, strict=True):
        assert one.keys == other.keys
        assert (one.images == other.images).all()
    held = sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*") if file.is_file())
    assert 0 < held <= 20_000


def test_far_shards_are_shuffled_group_by_group_and_resumed(
    recipe: dict[str, Any], bucket: Any, make_context: Callable[..., DataContext]
) -> None:
    root = f"s3://{bucket.name}/mine"
    built = build_shards(check_config(BuildConfig, recipe | {"output": root}))
    samples = sum(shard.samples for shard in built.shards["train"])
    data = ShardsData(ShardsData.Config(root=root, cache_gigabytes=3e-5))  # a shard fits into half of it, two do not
    data.prepare_data()
    data.connect(make_context(batch_size=1))
    batches = list(islice(data.train_dataloader(), 2 * samples))
    keys = [batch.keys[0] for batch in batches]
    assert Counter(keys) == dict.fromkeys(data.store("train").keys, 2)
    assert keys[:samples] != keys[samples:]
    shard_of = {key: data.store("train").shards[n // 4] for n, key in enumerate(data.store("train").keys)}
    visited = [shard_of[key] for key in keys[:samples]]
    changes = sum(one != other for one, other in pairwise(visited))
    assert changes == len(set(visited)) - 1
    data.connect(make_context(batch_size=1, position=batches[7].position))
    following = [batch.keys[0] for batch in islice(data.train_dataloader(), 9)]
    assert following == keys[8:17]
