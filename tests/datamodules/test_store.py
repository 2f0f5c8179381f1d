"""Samples of a split: found, read, decoded; broken ones named."""

import multiprocessing
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamodules.store import MAX_PIXELS, SampleError, SampleStore
from datamodules.writer import ShardWriter
from fvl_lightning.core.errors import DataError

Write = Callable[..., Path]
Bytes = Callable[..., bytes]


def test_samples_are_numbered_through_all_shards(tmp_path: Path, write_split: Write) -> None:
    store = SampleStore(write_split(tmp_path, "train", 10, samples_per_shard=3), "train")
    assert len(store) == 10
    assert [store.key(i) for i in (9, 0, 3, 2)] == ["s9", "s0", "s3", "s2"]
    assert [store.record(i)["messages"][1]["content"] for i in range(10)] == [str(i) for i in range(10)]
    assert all(store.images(i)[0][3, 3, 0] == i for i in range(10))


@pytest.mark.parametrize(("kind", "extension"), [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp")])
def test_formats(tmp_path: Path, image_bytes: Bytes, kind: str, extension: str) -> None:
    with ShardWriter(tmp_path, "train") as writer:
        writer.write("a", {}, [image_bytes(200, (40, 30), kind)], extension)
        writer.write("b", {}, [image_bytes(i, (40, 30), kind) for i in (10, 100)], extension)
    store = SampleStore(tmp_path, "train")
    assert store.images(0)[0].shape == (30, 40, 3)
    assert [round(float(image[20:, 20:].mean())) for image in store.images(1)] == [10, 100]


def test_missing_folder_split_and_samples(tmp_path: Path, write_split: Write) -> None:
    write_split(tmp_path / "shards", "train", 1)
    write_split(tmp_path / "shards", "test_unseen_words", 1)
    with pytest.raises(DataError, match=r"no folder .*shard with shards; did you mean 'shards'\?"):
        SampleStore(tmp_path / "shard", "train")
    sentence = r"no shard test-<number>.tar in .*: there are the splits test_unseen_words, train"
    with pytest.raises(DataError, match=sentence):
        SampleStore(tmp_path / "shards", "test")
    with pytest.raises(DataError, match=r"did you mean 'train'\?"):
        SampleStore(tmp_path / "shards", "trian")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="there are no shards at all"):
        SampleStore(tmp_path / "none", "train")


def test_an_empty_shard(tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(tmp_path / "train-0.tar", "w"):
        pass
    with pytest.raises(DataError, match=r"shard .*train-0.tar holds no samples"):
        SampleStore(tmp_path, "train")


def bomb(side: int) -> bytes:
    """A PNG of a few bytes whose header promises side x side pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


def test_broken_samples_name_shard_key_and_reason(tmp_path: Path, image_bytes: Bytes) -> None:
    whole = image_bytes(9, (64, 64))
    with ShardWriter(tmp_path, "train") as writer:
        writer.write("cut", {}, [whole[: len(whole) // 2]])
        writer.write("noise", {}, [b"\x00\x01\x02"])
        writer.write("bomb", {}, [bomb(40_000)])
        writer.write("large", {}, [bomb(8200)])
        writer.write("gif", {}, [b"GIF89a" + bytes(50)])
    store = SampleStore(tmp_path, "train")
    for i, key in enumerate(["cut", "noise", "bomb", "large", "gif"]):
        with pytest.raises(SampleError, match=rf"^sample '{key}' in .*train-000000.tar: broken image \(png") as error:
            store.images(i)
        assert error.value.key == key
        assert error.value.reason == "broken image"
        assert "\n" not in str(error.value)
    assert MAX_PIXELS < 8200**2
    with pytest.raises(SampleError, match="image of 8200 x 8200 pixels, at most"):
        store.images(3)


def test_bad_json(tmp_path: Path) -> None:
    import io
    import tarfile

    with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
        for key, content in (("a", b"{not json"), ("b", b"[1, 2]"), ("c", b"\xff\xfe")):
            info = tarfile.TarInfo(f"{key}.json")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        info = tarfile.TarInfo("d.png")
        archive.addfile(info)
    store = SampleStore(tmp_path, "train")
    for i, reason in enumerate(["bad JSON", "bad JSON", "bad JSON", "no JSON"]):
        with pytest.raises(SampleError, match=f"sample '{'abcd'[i]}' in .*train-0.tar: {reason}"):
            store.record(i)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10_000), value=st.integers(0, 255), kind=st.sampled_from(["PNG", "JPEG", "WEBP"]))
def test_no_damage_raises_anything_but_a_sample_error(
    tmp_path_factory: pytest.TempPathFactory, image_bytes: Bytes, place: int, value: int, kind: str
) -> None:
    content = bytearray(image_bytes(9, (30, 20), kind))
    content[place % len(content)] = value
    folder = tmp_path_factory.mktemp("damage")
    with ShardWriter(folder, "train") as writer:
        writer.write("a", {}, [bytes(content)])
    try:
        images = SampleStore(folder, "train").images(0)
    except SampleError:
        return
    assert images[0].dtype == np.uint8
    assert images[0].shape[2] == 3


def _read_in_worker(store: SampleStore) -> list[Any]:
    return [store.record(i)["messages"][1]["content"] for i in range(len(store))]


def test_a_store_is_read_after_pickling_and_in_another_process(tmp_path: Path, write_split: Write) -> None:
    store = SampleStore(write_split(tmp_path, "train", 5, samples_per_shard=2), "train")
    copy = pickle.loads(pickle.dumps(store))
    assert _read_in_worker(copy) == list("01234")
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_read_in_worker, [store, copy]) == [list("01234")] * 2


def test_a_sample_error_survives_the_way_back_from_a_worker() -> None:
    error = SampleError(Path("x-0.tar"), "k", "broken image", "bits")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.shard, copy.key, copy.reason) == (str(error), error.shard, "k", "broken image")
