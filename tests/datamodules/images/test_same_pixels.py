"""One file becomes the same pixels in training, validation, caching, scoring and use; and a changed file is noticed."""

import dataclasses
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.storage import content_hash as fingerprint
from datamodules.storage.sample_store import SampleStore
from fvl_lightning.core.types import Batch, DataContext, ImageSpec
from fvl_lightning.modeling.processing.image_processor import FlorenceVLImageProcessor
from tests.datamodules.connecting import connected

Write = Callable[..., Path]
MakeContext = Callable[..., DataContext]


def photo() -> bytes:
    """A JPEG that is large beside the encoder's 64 pixels, of noise, so that every way of decoding shows."""
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (300, 420, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path, write_split: Write, make_talk: Callable[..., dict[str, Any]]) -> Path:
    for split in ("train", "validation", "test"):
        write_split(tmp_path, split, 3, {0: (make_talk("what is it?", "noise"), [photo()])})
    return tmp_path


@pytest.mark.parametrize("view", ["conversation", "tasks"])
def test_bytes_become_the_same_pixels_on_the_device(folder: Path, make_context: MakeContext, view: str) -> None:
    """For a GPU, workers give bytes, a quarter of the pixels; the values are the workers' own, bit by bit."""
    spec = ImageSpec(64, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 4)
    plain, small = (
        next(iter(connected(folder, make_context(image=spec, byte_images=asked), view=view).train_dataloader()))
        for asked in (False, True)
    )
    assert plain.images is not None
    assert small.images is not None
    assert (plain.images.dtype, small.images.dtype) == (torch.float32, torch.uint8)
    moved = small.to("cpu")
    assert moved.images is not None
    assert torch.equal(moved.images, plain.images)
    assert moved.to("cpu").pixel_spec is None, "moved twice, normalised once"
    by_tensors = small.images.float() / 255 - torch.tensor(spec.mean).view(1, 3, 1, 1)
    assert torch.equal(moved.images, by_tensors / torch.tensor(spec.std).view(1, 3, 1, 1))


def test_copies_to_a_gpu_are_not_waited_for() -> None:
    """They come from pinned memory; all other tensors are moved as they are."""
    calls: list[str] = []

    class Recorded:
        def __init__(self, device: str) -> None:
            self.device = torch.device(device)

        def pin_memory(self) -> "Recorded":
            calls.append("pinned")
            return self

        def to(self, device: object, non_blocking: bool = False) -> str:
            calls.append(f"{device} {non_blocking}")
            return "moved"

    on_cpu: Any = Recorded("cpu")
    batch = Batch(on_cpu, on_cpu, None, {"davit": on_cpu}, ("a",), 0)
    assert batch.to(torch.device("cuda", 1)).features == {"davit": "moved"}
    assert calls == ["pinned", "cuda:1 True"] * 3
    calls.clear()
    batch.to("cpu")
    Batch(Recorded("cuda"), Recorded("cuda"), None, None, (), 0).to("cuda:0")  # type: ignore[arg-type]
    assert calls == ["cpu False"] * 3 + ["cuda:0 False"] * 2


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"scaled_decode": True}, marks=pytest.mark.slow),
        {"image_fit": "pad", "scaled_decode": True},
        pytest.param({}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_pixels_are_the_same_wherever_they_are_asked_for(
    folder: Path, make_context: MakeContext, fields: dict[str, Any]
) -> None:
    context = make_context()
    fresh = connected(folder, context, **fields)
    wanted = fresh.pixels("test", [0])[0]  # no loader has been made before, as in scoring
    plain = connected(folder, context, image_fit=fields.get("image_fit", "stretch")).pixels("test", [0])[0]
    assert torch.equal(wanted, plain) == (not fields.get("scaled_decode")), "the photo shows how it was decoded"

    data = connected(folder, context, **fields)
    for split, loader in (("train", data.train_dataloader), ("validation", data.val_dataloader)):
        assert torch.equal(data.pixels(split, [0])[0], wanted)
        batch = next(iter(loader()))
        place = batch.keys.index("s0")
        assert torch.equal(batch.images[place], wanted)
        assert torch.equal(data.pixels(split, [0])[0], wanted), "a loader changes nothing"

    file = folder / "photo.jpg"
    file.write_bytes(photo())
    assert torch.equal(data.reader.pixels([data.reader.read(file)])[0], wanted)
    spec = context.image
    processor = FlorenceVLImageProcessor(
        {"height": spec.size, "width": spec.size}, spec.mean, spec.std, data.config.image_fit, data.config.scaled_decode
    )
    processor.save_pretrained(folder / "saved")
    processor = FlorenceVLImageProcessor.from_pretrained(folder / "saved")
    for picture in (file, str(file), photo(), Image.open(file)):
        assert torch.equal(processor(picture)["pixel_values"][0], wanted)


def test_connecting_again_decodes_for_the_other_encoder(folder: Path, make_context: MakeContext) -> None:
    context = make_context()
    larger = dataclasses.replace(context, image=dataclasses.replace(context.image, size=250))
    data = connected(folder, context, scaled_decode=True)
    data.pixels("train", [0])
    data.connect(larger)
    assert torch.equal(data.pixels("train", [0]), connected(folder, larger, scaled_decode=True).pixels("train", [0]))


# What names the content.


@pytest.mark.parametrize("whole", [2**29, 0], ids=["read whole", "read at places"])
def test_an_edit_of_the_same_length_is_another_content(
    folder: Path, monkeypatch: pytest.MonkeyPatch, whole: int
) -> None:
    """Names, sizes and offsets stay as they were."""
    monkeypatch.setattr(fingerprint, "WHOLE_BYTES", whole)
    before = SampleStore.open(folder, "train")
    hashes = before.manifest_hash(), before.content_hash()
    tar = folder / "train-000000.tar"
    content = tar.read_bytes()
    assert b"noise" in content
    tar.write_bytes(content.replace(b"noise", b"notes"))
    after = SampleStore.open(folder, "train")
    assert after.manifest_hash() == hashes[0]
    assert after.content_hash() != hashes[1]
    tar.write_bytes(content)
    assert SampleStore.open(folder, "train").content_hash() == hashes[1]


def test_a_copy_elsewhere_is_the_same_content(folder: Path, tmp_path: Path) -> None:
    """Jobs copy their shards to a disk of the node, with new times."""
    there = tmp_path / "node"
    there.mkdir()
    for file in folder.glob("train-*"):
        (there / file.name).write_bytes(file.read_bytes())
    assert SampleStore.open(there, "train").content_hash() == SampleStore.open(folder, "train").content_hash()


def test_another_version_of_a_remote_file_is_another_content(folder: Path) -> None:
    url, tar = f"file://{folder}/train-000000.tar", folder / "train-000000.tar"
    size = tar.stat().st_size
    before = fingerprint.content_hash([url], [size])
    assert fingerprint.content_hash([url], [size]) == before
    os.utime(tar, (1, 1))
    assert fingerprint.content_hash([url], [size]) != before
