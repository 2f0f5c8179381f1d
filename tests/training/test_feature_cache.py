"""The feature cache returns the encoder's features, computes them once, and has a key for all that they depend on."""

import dataclasses
import errno
import importlib.util
import json
import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datamodules.images.tile_reader import TileReader
from datamodules.images.tiling import Tiling
from datamodules.images.transforms import ImageReader
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.types import FeatureSpec, ImageSpec
from fvl_lightning.encoders.base import Encoder
from fvl_lightning.training import feature_cache
from fvl_lightning.training.distributed.process_group import Ranks
from fvl_lightning.training.feature_cache import FeatureCache, build_feature_cache
from tests.thread_ranks import on_ranks
from tests.tiny_models import tiny_encoder


@dataclass(frozen=True)
class StubConfig:
    """What a stub's features depend on beside its weights."""

    power: int = 1


class StubEncoder(Encoder):
    """Two sources out of a picture's mean, and a count of the images it was shown."""

    specs = {"davit": FeatureSpec(2, 3, None), "ocr": FeatureSpec(2, 1, None)}  # noqa: RUF012

    def __init__(self, scale: float = 2.0, power: int = 1) -> None:
        super().__init__(StubConfig(power))
        self.scale = nn.Parameter(torch.tensor([scale]))
        self.decoder = nn.Linear(1, 1)
        nn.init.zeros_(self.decoder.weight)
        nn.init.zeros_(self.decoder.bias)
        self.shown = 0
        self.eval()

    def blocks(self) -> list[nn.Module]:
        return []

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        self.shown += images.shape[0]
        value = (images.mean((1, 2, 3)) * self.scale) ** self.config.power
        return {"davit": value.view(-1, 1, 1).expand(-1, 2, 3), "ocr": -value.view(-1, 1, 1).expand(-1, 2, 1)}


class StubStore:
    """Samples of one, no and two images in turn."""

    def __init__(self, count: int, shards: str) -> None:
        self._count, self._shards = count, shards

    def content_hash(self) -> str:
        return self._shards

    def __len__(self) -> int:
        return self._count

    def image_count(self, index: int) -> int:
        return (1, 0, 2)[index % 3]


class StubData:
    """The part of a data module that the cache asks; image j of sample i is filled with 10 i + j."""

    counts = {"train": 11, "validation": 4}  # noqa: RUF012

    def __init__(self, shards: str = "these", **pixels: Any) -> None:
        self.shards = shards
        tiling = pixels.pop("tiling", None)
        images = ImageReader(**{"spec": ImageSpec(2, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 4)} | pixels)
        self.reader = TileReader(images, tiling)

    def store(self, split: str) -> StubStore:
        return StubStore(self.counts[split], self.shards)

    def tile_counts(self, split: str, index: int) -> list[int]:
        return [1] * self.store(split).image_count(index)

    def pixels(self, split: str, indices: Sequence[int]) -> Tensor:
        values = [10.0 * i + j for i in indices for j in range(self.store(split).image_count(i))]
        return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)


Build = Callable[..., FeatureCache]


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    monkeypatch.setattr(feature_cache, "IMAGES_PER_BATCH", 4)

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
    assert first.shown == sum(StubData().store("train").image_count(index) for index in range(11))
    cache = build(second)
    assert second.shown == 0
    assert torch.equal(cache("train", 0)["davit"], first(StubData().pixels("train", [0]))["davit"])


def test_a_further_split_leaves_the_others(build: Build) -> None:
    build(StubEncoder())
    encoder = StubEncoder()
    build(encoder, None, ("train", "validation"))
    assert encoder.shown == sum(StubData().store("validation").image_count(index) for index in range(4))


def test_the_key_names_what_features_depend_on(build: Build) -> None:
    """One folder for everything equal, and another for each thing that may give other features."""
    spec = StubData().reader.images.spec
    others: list[tuple[nn.Module, StubData]] = [
        (StubEncoder(scale=2.0000002), StubData()),
        (StubEncoder(power=2), StubData()),
        (StubEncoder().double(), StubData()),
        (StubEncoder(), StubData("those")),
        (StubEncoder(), StubData(fit="pad")),
        (StubEncoder(), StubData(scaled=True)),
        (StubEncoder(), StubData(decoder="simplejpeg")),
        (StubEncoder(), StubData(tiling=Tiling(2, 4))),
        (StubEncoder(), StubData(tiling=Tiling(2, 5))),
        (StubEncoder(), StubData(spec=dataclasses.replace(spec, size=3))),
        (StubEncoder(), StubData(spec=dataclasses.replace(spec, mean=(0.4, 0.5, 0.5)))),
        (StubEncoder(), StubData(spec=dataclasses.replace(spec, std=(0.5, 0.5, 0.25)))),
    ]
    folder = build(StubEncoder()).folders["train"]
    assert build(StubEncoder()).folders["train"] == folder
    # How many tokens the fusion makes of an image changes no pixel: the arms of a comparison share a folder.
    assert build(StubEncoder(), StubData(spec=dataclasses.replace(spec, tokens_per_image=9))).folders["train"] == folder
    found = {build(encoder, data).folders["train"] for encoder, data in others}
    assert len(found | {folder}) == len(others) + 1


def test_shapes_are_written_as_in_the_caches_of_earlier_versions() -> None:
    assert str(FeatureSpec(4, 8, (2, 2), {"davit": FeatureSpec(4, 8, (2, 2))})) == (
        "FeatureSpec(tokens=4, dim=8, grid=(2, 2))"
    )


def test_every_field_of_the_pixels_is_in_the_key() -> None:
    """A field that is added to the reader tomorrow, too."""
    assert StubData().reader.identity().keys() == {field.name for field in dataclasses.fields(ImageReader)}


def test_a_child_called_decoder_counts_unless_the_encoder_says_otherwise(build: Build) -> None:
    """Florence-2's own makes no features; another encoder's may."""
    encoder, folder = StubEncoder(), build(StubEncoder()).folders["train"]
    with torch.no_grad():
        encoder.decoder.weight += 1
    assert build(encoder).folders["train"] != folder
    kept = tiny_encoder(decoder="keep")
    assert any(name.startswith("decoder.") for name in kept.state_dict())
    names = kept.feature_state().keys()
    assert names == kept.state_dict().keys() - {name for name in kept.state_dict() if name.startswith("decoder.")}


def test_edited_code_of_an_encoder_of_ones_own_is_another_pass(tmp_path: Path) -> None:
    plugin, found = tmp_path / "mine.py", []
    for power in (1, 2):
        plugin.write_text(f"from torch import nn\nclass Mine(nn.Module):\n    power = {power}\n", encoding="utf-8")
        spec = importlib.util.spec_from_file_location("plugin_of_this_test", plugin)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules["plugin_of_this_test"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found.append(feature_cache.hash_code(module.Mine()))
    assert [list(code) for code in found] == [["mine.py"]] * 2, "torch goes by its version"
    assert found[0] != found[1]


def test_another_order_of_sources_reads_the_same_files(build: Build) -> None:
    cache, turned = build(StubEncoder()), StubEncoder()
    turned.specs = {name: StubEncoder.specs[name] for name in ("ocr", "davit")}
    again = build(turned)
    assert (again.folders, turned.shown) == (cache.folders, 0)
    assert list(again("train", 0)) == ["ocr", "davit"]


def test_the_way_prompts_are_padded_is_in_the_key() -> None:
    """Two encoders of the same weights, one attending to the pads of its prompts, give other features."""
    keys = {
        json.dumps(feature_cache.encoder_identity(tiny_encoder(**changes)), sort_keys=True)
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


def test_a_full_disk_is_a_sentence_before_anything_is_computed(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    encoder = StubEncoder()
    with pytest.raises(DataError, match=r"train cannot be written \(No space left on device; [\d,]+ bytes free in"):
        build(encoder)
    assert encoder.shown == 0
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_what_a_killed_process_was_computing_is_removed_whatever_is_computed_next(build: Build, tmp_path: Path) -> None:
    class Killed(StubEncoder):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            os.kill(os.getpid(), signal.SIGKILL)
            return super().forward(images)

    process = multiprocessing.get_context("fork").Process(target=build, args=(Killed(),))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    left = list((tmp_path / "cache").rglob("*.npy"))
    assert left
    build(StubEncoder(scale=3.0))
    assert not any(path.exists() for path in left)
    assert not list((tmp_path / "cache").rglob(".*"))


def files_of(cache: FeatureCache) -> dict[str, bytes]:
    return {
        f"{split}/{path.name}": path.read_bytes()
        for split, folder in cache.folders.items()
        for path in sorted(folder.iterdir())
    }


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_ranks_that_share_the_samples_write_the_files_of_one(build: Build, tmp_path: Path, ranks: int) -> None:
    """With the weights of rank 0, although the others have others, and whether or not all have a batch."""
    splits = ("train", "validation")
    wanted = files_of(build(StubEncoder(), None, splits))
    encoders = [StubEncoder(scale=2.0 if rank == 0 else 9.0) for rank in range(ranks)]

    def work(own: Ranks) -> FeatureCache:
        return build_feature_cache(
            encoders[own.rank], StubData(), list(splits), tmp_path / "shared", ranks=own, workers=0
        )

    caches = on_ranks(ranks, work)
    assert all(cache.folders == caches[0].folders for cache in caches)
    assert files_of(caches[0]) == wanted


def test_workers_read_the_same_images(build: Build, tmp_path: Path) -> None:
    wanted = files_of(build(StubEncoder()))
    assert files_of(build_feature_cache(StubEncoder(), StubData(), ["train"], tmp_path / "read", workers=1)) == wanted


def test_an_image_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    class Damaged(StubData):
        def pixels(self, split: str, indices: Sequence[int]) -> Tensor:
            raise DataError("sample 0 is damaged")

    for workers in (0, 1):
        with pytest.raises(DataError, match=r"^sample 0 is damaged$"):
            build_feature_cache(StubEncoder(), Damaged(), ["train"], tmp_path, workers=workers)


def test_files_in_bfloat16_take_half_the_disk(build: Build, tmp_path: Path) -> None:
    """They have a folder of their own, and give float32 features that are rounded."""
    whole, encoder = build(StubEncoder()), StubEncoder()
    half = build_feature_cache(encoder, StubData(), ["train"], tmp_path / "cache", dtype="bfloat16")
    assert half.folders != whole.folders
    for name in ("davit", "ocr"):
        values = 10 * 2 * encoder.specs[name].dim  # 10 images
        sizes = [(cache.folders["train"] / f"{name}.npy").stat().st_size for cache in (whole, half)]
        assert sizes[0] - sizes[1] == 2 * values
    for index in range(11):
        found, wanted = half("train", index), whole("train", index)
        for name, feature in found.items():
            assert feature.dtype == torch.float32
            assert torch.equal(feature, wanted[name].bfloat16().float())
    again = StubEncoder()
    build_feature_cache(again, StubData(), ["train"], tmp_path / "cache", dtype="bfloat16")
    assert again.shown == 0
