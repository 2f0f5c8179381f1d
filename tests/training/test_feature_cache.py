"""Cached features are what the encoder gives, computed once, and kept under a name that says of what."""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fvl_lightning.core.types import FeatureSpec
from fvl_lightning.training import feature_cache
from fvl_lightning.training.feature_cache import FeatureCache, build_feature_cache
from tests.tiny_models import tiny_encoder


@dataclass(frozen=True)
class StubConfig:
    """What a stub's features depend on beside its weights."""

    power: int = 1


class StubEncoder(nn.Module):
    """Two sources out of a picture's mean, and a count of the images it was shown."""

    specs = {"davit": FeatureSpec(2, 3, None), "ocr": FeatureSpec(2, 1, None)}  # noqa: RUF012

    def __init__(self, scale: float = 2.0, power: int = 1) -> None:
        super().__init__()
        self.config = StubConfig(power)
        self.scale = nn.Parameter(torch.tensor([scale]))
        self.shown = 0

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        self.shown += images.shape[0]
        value = (images.mean((1, 2, 3)) * self.scale) ** self.config.power
        return {"davit": value.view(-1, 1, 1).expand(-1, 2, 3), "ocr": -value.view(-1, 1, 1).expand(-1, 2, 1)}


class StubStore:
    """Samples of one, no and two images in turn."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def image_count(self, index: int) -> int:
        return (1, 0, 2)[index % 3]


class StubData:
    """The part of a data module that the cache asks; image j of sample i is filled with 10 i + j."""

    counts = {"train": 11, "validation": 4}  # noqa: RUF012

    def __init__(self, shards: str = "these") -> None:
        self.shards = shards

    def store(self, split: str) -> StubStore:
        return StubStore(self.counts[split])

    def pixels(self, split: str, indices: Sequence[int]) -> Tensor:
        values = [10.0 * i + j for i in indices for j in range(self.store(split).image_count(i))]
        return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)

    def manifest_hash(self) -> str:
        return self.shards


Build = Callable[..., FeatureCache]


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    monkeypatch.setattr(feature_cache, "IMAGES_AT_ONCE", 4)

    def call(encoder: nn.Module, data: StubData | None = None, splits: Sequence[str] = ("train",)) -> FeatureCache:
        return build_feature_cache(encoder, data or StubData(), list(splits), tmp_path / "cache")

    return call


def test_cached_features_are_the_encoders(build: Build) -> None:
    encoder, data = StubEncoder(), StubData()
    cache = build(encoder, data, ("train", "validation"))
    for split in ("train", "validation"):
        for index in range(len(data.store(split))):
            found, wanted = cache(split, index), encoder(data.pixels(split, [index]))
            assert list(found) == ["davit", "ocr"]
            for name, feature in found.items():
                assert feature.dtype == torch.float32
                assert tuple(feature.shape) == (data.store(split).image_count(index), 2, encoder.specs[name].dim)
                assert torch.equal(feature, wanted[name])


def test_each_image_is_shown_once_ever(build: Build) -> None:
    first, second = StubEncoder(), StubEncoder()
    build(first)
    assert first.shown == sum(StubStore(11).image_count(index) for index in range(11))
    cache = build(second)
    assert second.shown == 0
    assert torch.equal(cache("train", 0)["davit"], first(StubData().pixels("train", [0]))["davit"])


def test_a_further_split_leaves_the_others(build: Build) -> None:
    build(StubEncoder())
    encoder = StubEncoder()
    build(encoder, None, ("train", "validation"))
    assert encoder.shown == sum(StubStore(4).image_count(index) for index in range(4))


def test_the_key_names_what_features_depend_on(build: Build) -> None:
    folder = build(StubEncoder()).folder
    assert build(StubEncoder()).folder == folder
    others = {
        build(StubEncoder(scale=2.0000002)).folder,
        build(StubEncoder(power=2)).folder,
        build(StubEncoder(), StubData("those")).folder,
        folder,
    }
    assert len(others) == 4


def test_another_order_of_sources_reads_the_same_files(build: Build) -> None:
    cache, turned = build(StubEncoder()), StubEncoder()
    turned.specs = {name: StubEncoder.specs[name] for name in ("ocr", "davit")}
    again = build(turned)
    assert (again.folder, turned.shown) == (cache.folder, 0)
    assert list(again("train", 0)) == ["ocr", "davit"]


def test_the_way_prompts_are_padded_is_in_the_key() -> None:
    """Two encoders of the same weights, one attending to the pads of its prompts, give other features."""
    keys = {
        feature_cache._cache_key(tiny_encoder(**changes), StubData())
        for changes in ({}, {"prompt_pads": "attend"}, {"sources": ["davit"]}, {"image_size": 17}, {})
    }
    assert len(keys) == 4


def test_features_are_copies(build: Build) -> None:
    """Not views of the mapped file, which is open for reading only: torch would write into it and crash."""
    cache = build(StubEncoder())
    found = cache("train", 2)
    _, arrays = cache._arrays("train")
    assert not any(np.shares_memory(feature.numpy(), arrays[name]) for name, feature in found.items())


def test_a_worker_maps_the_files_itself(build: Build) -> None:
    cache = build(StubEncoder())
    before = cache("train", 2)
    again = pickle.loads(pickle.dumps(cache))
    assert again._open == {}
    assert all(torch.equal(feature, before[name]) for name, feature in again("train", 2).items())


def test_nothing_half_written_counts(build: Build, tmp_path: Path) -> None:
    """An encoder that fails in the middle leaves no folder that a later run would take for whole."""

    class Failing(StubEncoder):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            if self.shown >= 4:
                raise KeyboardInterrupt
            return super().forward(images)

    with pytest.raises(KeyboardInterrupt):
        build(Failing())
    encoder = StubEncoder()
    cache = build(encoder)
    assert encoder.shown == 10
    assert torch.equal(cache("train", 9)["ocr"], encoder(StubData().pixels("train", [9]))["ocr"])


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    build_feature_cache(StubEncoder(), StubData(), ["validation"], tmp_path, lambda *counts: seen.append(counts))
    assert seen[-1] == ("validation", 4, 4)
