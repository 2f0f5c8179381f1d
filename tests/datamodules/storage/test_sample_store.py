"""Samples of a split: found, read, decoded; broken ones named."""

import io
import multiprocessing
import os
import pickle
import resource
import signal
import struct
import sys
import tarfile
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread, Timer
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamodules.images.limits import MAX_PIXELS
from datamodules.storage import open_files
from datamodules.storage.sample import RawSample, SampleError
from datamodules.storage.sample_store import SampleStore
from datamodules.storage.writer import ShardWriter
from fvl_lightning.core.errors import DataError

Write = Callable[..., Path]
Bytes = Callable[..., bytes]


def write_tar(path: Path, contents: Mapping[str, bytes]) -> None:
    """A tar with these members (name -> content), in their order."""
    with tarfile.open(path, "w") as archive:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_samples_are_numbered_through_all_shards(tmp_path: Path, write_split: Write) -> None:
    store = SampleStore.open(write_split(tmp_path, "train", 10, samples_per_shard=3), "train")
    assert len(store) == 10
    assert [store.key(i) for i in (9, 0, 3, 2)] == ["s9", "s0", "s3", "s2"]
    assert [store.record(i)["messages"][1]["content"] for i in range(10)] == [str(i) for i in range(10)]
    assert all(store.images(i)[0][3, 3, 0] == i for i in range(10))


@pytest.mark.parametrize(("kind", "extension"), [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp")])
def test_formats(tmp_path: Path, image_bytes: Bytes, kind: str, extension: str) -> None:
    with ShardWriter(tmp_path, "train") as writer:
        writer.write("a", {}, [image_bytes(200, (40, 30), kind)], extension)
        writer.write("b", {}, [image_bytes(i, (40, 30), kind) for i in (10, 100)], extension)
    store = SampleStore.open(tmp_path, "train")
    assert store.images(0)[0].shape == (30, 40, 3)
    assert [round(float(image[20:, 20:].mean())) for image in store.images(1)] == [10, 100]


def test_missing_folder_split_and_samples(tmp_path: Path, write_split: Write) -> None:
    write_split(tmp_path / "shards", "train", 1)
    write_split(tmp_path / "shards", "test_unseen_words", 1)
    with pytest.raises(DataError, match=r"no folder .*shard with shards; did you mean 'shards'\?"):
        SampleStore.open(tmp_path / "shard", "train")
    sentence = r"no shard test-<number>.tar in .*: there are the splits test_unseen_words, train"
    with pytest.raises(DataError, match=sentence):
        SampleStore.open(tmp_path / "shards", "test")
    with pytest.raises(DataError, match=r"did you mean 'train'\?"):
        SampleStore.open(tmp_path / "shards", "trian")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="there are no shards at all"):
        SampleStore.open(tmp_path / "none", "train")


def test_an_empty_shard(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train-0.tar", "w"):
        pass
    with pytest.raises(DataError, match=r"shard .*train-0.tar holds no samples"):
        SampleStore.open(tmp_path, "train")


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
    store = SampleStore.open(tmp_path, "train")
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
    with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
        for key, content in (("a", b"{not json"), ("b", b"[1, 2]"), ("c", b"[" * 200_000)):
            info = tarfile.TarInfo(f"{key}.json")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        info = tarfile.TarInfo("d.png")
        archive.addfile(info)
    store = SampleStore.open(tmp_path, "train")
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
        images = SampleStore.open(folder, "train").images(0)
    except SampleError:
        return
    assert images[0].dtype == np.uint8
    assert images[0].shape[2] == 3


def _read_in_worker(store: SampleStore) -> list[Any]:
    return [store.record(i)["messages"][1]["content"] for i in range(len(store))]


def test_a_store_is_read_after_pickling_and_in_another_process(tmp_path: Path, write_split: Write) -> None:
    store = SampleStore.open(write_split(tmp_path, "train", 5, samples_per_shard=2), "train")
    copy = pickle.loads(pickle.dumps(store))
    assert _read_in_worker(copy) == list("01234")
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_read_in_worker, [store, copy]) == [list("01234")] * 2


def test_raw_samples(tmp_path: Path, image_bytes: Bytes) -> None:
    """Whatever the order of members in the tar; a stretch that is not ours in between is not read."""
    images = [image_bytes(number) for number in range(3)]
    contents = {"a.2.png": images[2], "a.txt": b"words", "a.pkl": bytes(10**6), "a.0.png": images[0]}
    contents |= {"a.json": b'{"x": 1}', "a.1.PNG": images[1], "b.png": images[0], "c.txt": b" lone \n"}
    write_tar(tmp_path / "train-0.tar", contents)
    store = SampleStore.open(tmp_path, "train")
    assert store.read(0) == RawSample("a", b'{"x": 1}', b"words", images)
    assert store.read(1) == RawSample("b", None, None, images[:1])
    assert store.read(2) == RawSample("c", None, b" lone \n", [])
    assert store.encoded_images(0) == [("0.png", images[0]), ("1.png", images[1]), ("2.png", images[2])]
    assert [store.image_count(i) for i in range(3)] == [3, 1, 0]
    assert store.record(2) == {"caption": "lone"}


def test_a_sample_is_one_read_and_what_is_not_ours_none(
    tmp_path: Path, image_bytes: Bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = {f"a.{number}.png": image_bytes(number) for number in range(5)}
    far = {"b.json": b"{}", "b.pkl": bytes(10**6), "b.png": images["a.0.png"]}
    write_tar(tmp_path / "train-0.tar", {"a.json": b"{}", **images, **far})
    store = SampleStore.open(str(tmp_path), "train")
    lengths: list[int] = []
    pread = os.pread
    monkeypatch.setattr("os.pread", lambda *args: (lengths.append(args[1]), pread(*args))[1])
    assert len(store.read(0).images) == 5
    assert len(lengths) == 1
    assert len(store.read(1).images) == 1
    assert len(lengths) == 3
    store.record(0)
    assert sum(lengths[1:]) < 5000, "nor are images read for a text"


def test_another_decoder_may_be_given(tmp_path: Path, write_split: Write) -> None:
    def dark(encoded: bytes) -> Any:
        assert encoded.startswith(b"\x89PNG")
        return np.zeros((1, 2, 3), dtype=np.uint8)

    store = SampleStore.open(str(write_split(tmp_path, "train", 1)), "train", decode=dark)
    assert store.images(0)[0].shape == (1, 2, 3)


BAD_TEXTS = {
    "a.json": b'{"a": ["x\\ud800y"]}',
    "b.json": b'{"a\\u0000": 1}',
    "c.json": b'{"a": "\xed\xa0\x80"}',
    "d.txt": b"caf\xe9",
    "e.txt": b"a\0b",
    "f.json": b'{"a": "\0"}',
    "g.json": b'{"a": [{"b": "\\uDfFf"}]}',
}


def test_texts_that_no_tokenizer_could_take(tmp_path: Path) -> None:
    good = {"x.json": rb'{"a": "\ud83d\ude00 \\u0000 \\ud800"}', "y.json": b'\xef\xbb\xbf{"b": 1}'}
    write_tar(tmp_path / "train-0.tar", {**BAD_TEXTS, **good})
    store = SampleStore.open(tmp_path, "train")
    for i in range(len(BAD_TEXTS)):
        with pytest.raises(SampleError, match=f"sample '{'abcdefg'[i]}' in .*: bad text") as error:
            store.record(i)
        assert error.value.reason == "bad text"
    assert store.record(len(BAD_TEXTS)) == {"a": "\U0001f600 \\u0000 \\ud800"}
    assert store.record(len(BAD_TEXTS) + 1) == {"b": 1}


def test_good_shards_are_read_beside_damaged_ones(
    tmp_path: Path, write_split: Write, caplog: pytest.LogCaptureFixture
) -> None:
    write_split(tmp_path, "train", 4, samples_per_shard=2)
    (tmp_path / "train-000002.tar").write_bytes(b"")
    write_tar(tmp_path / "train-000003.tar", {"../a.json": b"{}", "b.json": b"{}", "../c.json": b"{}"})
    store = SampleStore.open(tmp_path, "train")
    assert store.keys == ["s0", "s1", "s2", "s3", "b"]
    assert {reason: found.count for reason, found in store.problems.items()} == {"empty file": 1, "unsafe name": 2}
    assert "train-000003.tar: 2 x unsafe name (../a.json)" in caplog.text
    names = [str(tmp_path / name) for name in ("c.tar", "d.tar")]
    for name in names:
        Path(name).write_bytes(b"")
    with pytest.raises(DataError, match=r"none of 2 shards, .*c.tar first, holds samples: 2 x empty file"):
        SampleStore(names, "train")


def test_a_text_that_changed_under_its_index_is_told(tmp_path: Path) -> None:
    """Of equal size as a tar, all members at the same places, and yet another length."""
    write_tar(tmp_path / "train-0.tar", {"a.json": b'{"a": 1}'})
    SampleStore.open(tmp_path, "train")
    write_tar(tmp_path / "train-0.tar", {"a.json": b'{"a": 1, "b": 2}'})
    with pytest.raises(DataError, match=r"does not match its tar: no member a\.json of 8 bytes"):
        SampleStore.open(tmp_path, "train").record(0)


def test_files_that_vanish_shrink_or_fail_are_one_sentence(
    tmp_path: Path, write_split: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = write_split(tmp_path, "train", 2) / "train-000000.tar"
    store = SampleStore.open(tmp_path, "train")
    content = tar.read_bytes()
    tar.unlink()
    with pytest.raises(DataError, match=r"shard .*000.tar cannot be read: No such file or directory$"):
        store.read(0)
    tar.write_bytes(content)
    assert store.read(0).key == "s0"
    os.truncate(tar, 700)
    with pytest.raises(SampleError, match=r"sample 's1' in .*: cut short \(0 of \d+ bytes are there\)"):
        store.read(1)

    def fail(*args: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.pread", fail)
    with pytest.raises(DataError, match="cannot be read: Input/output error"):
        store.read(0)


def test_only_so_many_files_are_open_at_once(
    tmp_path: Path, write_split: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datamodules.storage.open_files._local", {})
    monkeypatch.setattr("datamodules.storage.open_files.MOST_OPEN", 3)
    store = SampleStore.open(str(write_split(tmp_path, "train", 12, samples_per_shard=1)), "train")
    before = len(os.listdir("/proc/self/fd"))
    assert [store.read(i).key for i in (*range(12), *range(12))] == [f"s{i}" for i in range(12)] * 2
    assert len(os.listdir("/proc/self/fd")) == before + 3
    del store
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_stores_of_a_process_share_what_it_may_have_open(
    tmp_path: Path, write_split: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datamodules.storage.open_files._local", {})
    monkeypatch.setattr("resource.getrlimit", lambda kind: (20, 20))
    folder = str(write_split(tmp_path, "train", 9, samples_per_shard=1))
    stores = [SampleStore.open(folder, "train") for _ in range(4)]
    before = len(os.listdir("/proc/self/fd"))
    assert {store.read(i).key for i in range(9) for store in stores} == {f"s{i}" for i in range(9)}
    assert len(os.listdir("/proc/self/fd")) == before + 5


def test_where_no_more_files_can_be_opened_those_of_stores_are_closed_first(
    tmp_path: Path, write_split: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datamodules.storage.open_files._local", {})
    folder = str(write_split(tmp_path, "train", 9, samples_per_shard=1))
    one, other = (SampleStore.open(folder, "train") for _ in range(2))
    taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(4)]  # all numbers up to the last of them are in use
    monkeypatch.setattr("datamodules.storage.open_files.most_open", lambda: 100)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        for descriptor in taken[1:]:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (taken[-1] + 1, limits[1]))
        assert [store.read(i).key for i in range(9) for store in (one, other)] == [f"s{i // 2}" for i in range(18)]
        open_files.release(one._files._owner)
        open_files.release(other._files._owner)
        resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 1, limits[1]))
        with pytest.raises(DataError, match=r"cannot be read: Too many open files \(.* may have \d+ .*ulimit -n 4096"):
            one.read(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        os.close(taken[0])


def test_threads_may_share_a_store(tmp_path: Path, write_split: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.storage.open_files.MOST_OPEN", 2)
    store = SampleStore.open(str(write_split(tmp_path, "train", 60, samples_per_shard=5)), "train")
    numbers = [i * 7 % 60 for i in range(3000)]
    with ThreadPoolExecutor(8) as pool:
        assert [raw.key for raw in pool.map(store.read, numbers)] == [f"s{i}" for i in numbers]


def test_threads_keep_the_open_files_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """An OrderedDict did not stand this: its length was wrong then, and closing the oldest files never ended."""
    monkeypatch.setattr("datamodules.storage.open_files._local", {})
    monkeypatch.setattr("datamodules.storage.open_files.MOST_OPEN", 2)
    owner, interval = object(), sys.getswitchinterval()

    def open_many(start: int) -> None:
        for number in range(start, 7 * 1000, 7):
            open_files.opened((owner, number % 12), lambda: os.open(os.devnull, os.O_RDONLY), False)

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(open_many, [0, 1] * 4))
    finally:
        sys.setswitchinterval(interval)
    assert len(list(open_files._local)) == len(open_files._local) == 2
    open_files.release(owner)
    assert not open_files._local


def test_a_forked_process_reads_while_a_thread_reads(tmp_path: Path, write_split: Write) -> None:
    store = SampleStore.open(str(write_split(tmp_path, "train", 6, samples_per_shard=1)), "train")
    entered, leave = Event(), Event()

    def hold() -> None:
        with open_files._lock:
            entered.set()
            leave.wait(5)

    thread = Thread(target=hold)
    thread.start()
    entered.wait()
    Timer(0.1, leave.set).start()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(0 if store.read(0).key == "s0" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    thread.join()


def test_a_sample_error_survives_the_way_back_from_a_worker() -> None:
    error = SampleError("x-0.tar", "k", "broken image", "bits")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.shard, copy.key, copy.reason) == (str(error), error.shard, "k", "broken image")
