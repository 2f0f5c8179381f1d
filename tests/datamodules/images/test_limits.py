"""The limits of images that are read together, and that no more than one large image is held."""

import io
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.building.row_to_sample import BuiltSample, prepare_chunk
from datamodules.images.decoding import refuse_many_pixels
from datamodules.images.limits import MAX_IMAGES, MAX_PIXELS, MAX_PIXELS_TOGETHER, refuse_many_images
from datamodules.images.tile_reader import TileReader
from datamodules.images.transforms import Fit, ImageReader
from datamodules.inspection.check import check_samples
from datamodules.inspection.preview import preview_sample
from datamodules.inspection.statistics import collect_statistics
from datamodules.sources.base import Row, Source
from datamodules.storage.sample import SampleError
from datamodules.storage.sample_store import SampleStore
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.types import ImageSpec
from fvl_lightning.inference.requests import file_requests

SPEC = ImageSpec(16, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), 4)
SIDE = 1500


def black(side: int = 8000) -> bytes:
    """A PNG of black pixels, few bytes for many."""
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG", compress_level=9)
    return file.getvalue()


@pytest.fixture(scope="module")
def large() -> bytes:
    return black()


def talk(images: int) -> dict[str, object]:
    parts = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": "what?"}]
    return {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "dark"}]}


def test_pixels_count_by_headers(large: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(large)
    most = MAX_PIXELS_TOGETHER // 8000**2
    tracemalloc.start()
    refuse_many_pixels([large] * most)
    for images in ([large] * (most + 1), [tmp_path / "a.png"] * (most + 1), [b"no image", *[large] * 12]):
        with pytest.raises(DataError, match=rf"^{len(images)} images of \d+ pixels, at most 268435456 are read"):
            refuse_many_pixels(images)
    refuse_many_pixels([b"no image"] * 12)
    refuse_many_images(MAX_IMAGES)
    with pytest.raises(DataError, match=r"^65 images, at most 64"):
        refuse_many_images(MAX_IMAGES + 1)
    assert tracemalloc.get_traced_memory()[1] < 20 * 2**20, "none is decoded"
    tracemalloc.stop()
    assert MAX_PIXELS_TOGETHER >= MAX_PIXELS


def test_a_row_of_many_pixels_is_refused_everywhere(
    large: bytes, tmp_path: Path, write_split: Callable[..., Path]
) -> None:
    """By builds, training, check, info, preview and generate, in the same words."""
    detail = "12 images of 768000000 pixels, at most 268435456 are read together"

    class OneRow(Source):
        def chunks(self):  # type: ignore[no-untyped-def]
            return iter([0])

        def rows(self, chunk):  # type: ignore[no-untyped-def]
            yield Row(talk(12), (large,) * 12)

    (refused,) = prepare_chunk(OneRow(None), 0, 0, {"train": 1.0})
    assert not isinstance(refused, BuiltSample)
    assert (refused.reason, refused.detail) == ("image too large", detail)  # type: ignore[union-attr]
    store = SampleStore.open(write_split(tmp_path, "train", 2, {0: (talk(12), [large] * 12)}), "train")
    with pytest.raises(SampleError, match=rf"image too large \({detail}\)"):
        store.images(0)
    assert check_samples(store, processes=1).counts == {"image too large": 1}
    assert collect_statistics(store, processes=1).unusable == {"image too large": 1}
    assert preview_sample(store, 0).problem == f"image too large: {detail}"
    (tmp_path / "a.png").write_bytes(large)
    row = {"images": ["a.png"] * 12, "prompt": "what?"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row), encoding="utf-8")
    (request,) = file_requests(tmp_path / "rows.jsonl").read()
    with pytest.raises(DataError, match=f"^{detail}$"):
        request.messages(TileReader(ImageReader(SPEC)))


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
def test_squared_images_give_the_same_pixels(fit: Fit) -> None:
    reader = ImageReader(SPEC, fit)
    for size in ((16, 16), (40, 23), (5, 31), (1, 1)):
        file = io.BytesIO()
        Image.effect_noise(size, 90).convert("RGB").save(file, "PNG")
        square = reader.decode_square(file.getvalue())
        assert square.shape == (16, 16, 3)
        whole = reader.decode(file.getvalue())
        assert np.array_equal(reader.pixels([square]).numpy(), reader.pixels([whole]).numpy())


def test_no_more_than_one_large_image_is_held(tmp_path: Path, write_split: Callable[..., Path]) -> None:
    images, one = 4, SIDE * SIDE * 3
    folder = write_split(tmp_path, "train", 1, {0: (talk(images), [black(SIDE)] * images)})
    store = SampleStore([str(folder / "train-000000.tar")], "train", decode=ImageReader(SPEC).decode_square)
    for read in (lambda: store.images(0), lambda: preview_sample(store, 0)):
        tracemalloc.start()
        read()
        assert tracemalloc.get_traced_memory()[1] < 2.5 * one
        tracemalloc.stop()
    shown = preview_sample(SampleStore.open(folder, "train"), 0)
    assert shown.pixels == ", ".join([f"{SIDE} x {SIDE}"] * images)
    assert max(max(image.shape) for image in shown.images) <= 300
