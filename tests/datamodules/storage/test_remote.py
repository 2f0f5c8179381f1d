"""Shards in a store like S3, their copies in a folder that never outgrows its limit, and other protocols."""

import builtins
import multiprocessing
import os
import pickle
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem

from datamodules.storage.index import index_path
from datamodules.storage.remote import (
    is_remote,
    list_names,
    put_file,
    read_bytes,
    read_if_there,
    remote_size,
    remote_version,
)
from datamodules.storage.sample_store import SampleStore
from datamodules.storage.shard_cache import ShardCache
from datamodules.storage.shard_paths import expand_shards, split_shards
from fvl_lightning.core.errors import DataError

Write = Callable[..., Path]

SHARDS, EACH = 4, 3


@pytest.fixture
def shards(tmp_path: Path, write_split: Write) -> Path:
    return write_split(tmp_path / "made", "train", SHARDS * EACH, samples_per_shard=EACH)


def upload(bucket: Any, folder: Path, pattern: str = "*") -> str:
    for file in sorted(folder.glob(pattern)):
        bucket.upload_file(str(file), f"data/{file.name}")
    return f"s3://{bucket.name}/data"


def held(folder: Path) -> int:
    """The bytes of all files of a cache."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def test_remote_samples_are_the_local_ones(tmp_path: Path, shards: Path, bucket: Any) -> None:
    root, cache = upload(bucket, shards), ShardCache(tmp_path / "cache", 10**6)
    local, remote = SampleStore.open(str(shards), "train"), SampleStore.open(root, "train", cache)
    assert remote.shards == [f"{root}/train-{number:06d}.tar" for number in range(SHARDS)]
    assert not (tmp_path / "cache").exists(), "the indexes are enough to open a store"
    assert remote.keys == local.keys
    assert remote.manifest_hash() == local.manifest_hash()
    assert [remote.read(i) for i in range(len(remote))] == [local.read(i) for i in range(len(local))]
    assert held(tmp_path / "cache") == sum(path.stat().st_size for path in shards.glob("*.tar"))
    assert np.array_equal(remote.images(5)[0], local.images(5)[0])


def test_a_remote_shard_without_index_is_indexed_once(
    tmp_path: Path, shards: Path, bucket: Any, caplog: pytest.LogCaptureFixture
) -> None:
    root, cache = upload(bucket, shards, "*.tar"), ShardCache(tmp_path / "cache", 10**6)
    with caplog.at_level("INFO", "datamodules"):
        first = SampleStore.open(root, "train", cache)
        for tar in (tmp_path / "cache").glob("*.tar"):
            tar.unlink()
        second = SampleStore.open(root, "train", cache)
    assert caplog.text.count(f"{SHARDS} of {SHARDS} shards have no index (such as {root}/train-000000.tar)") == 1
    assert not list((tmp_path / "cache").glob("*.tar")), "the second store reads the index that was kept"
    assert first.keys == second.keys == SampleStore.open(str(shards), "train").keys
    assert second.read(7).key == "s7"


def test_a_remote_shard_that_was_replaced_is_fetched_again(tmp_path: Path, write_split: Write, bucket: Any) -> None:
    cache = ShardCache(tmp_path / "cache", 10**6)
    for folder, count in (("old", 2), ("new", 30)):
        root = upload(bucket, write_split(tmp_path / folder, "train", count), "*.tar")
        store = SampleStore.open(root, "train", cache)
        assert [store.read(i).key for i in range(len(store))] == [f"s{i}" for i in range(count)]


@pytest.mark.parametrize("pattern", ["*", "*.tar"], ids=["its index beside it", "an index of our own"])
def test_a_new_version_of_the_same_size_is_read(
    tmp_path: Path, write_split: Write, bucket: Any, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    """A text is edited, no length changes; what was opened before stays what it was."""
    made, cache = write_split(tmp_path / "made", "train", 2), ShardCache(tmp_path / "cache", 10**6)
    root, tar = upload(bucket, made, pattern), made / "train-000000.tar"
    before = SampleStore.open(root, "train", cache)
    old = before.record(1)
    tar.write_bytes(tar.read_bytes().replace(b"how dark", b"how pale"))
    upload(bucket, made, pattern)
    after = SampleStore.open(root, "train", cache)
    assert after.record(1) == SampleStore.open(str(made), "train").record(1) != old
    with monkeypatch.context() as patch:
        patch.setattr("datamodules.storage.remote._filesystem", lambda url: pytest.fail("a copy needs no server"))
        assert pickle.loads(pickle.dumps(after)).record(1) == after.record(1)
        assert pickle.loads(pickle.dumps(before)).record(1) == old, "its copy is kept, too, until it is evicted"


def test_an_index_that_was_made_is_of_one_version(tmp_path: Path, write_split: Write) -> None:
    made, cache = write_split(tmp_path / "made", "train", 3), ShardCache(tmp_path / "cache", 10**6)
    tar = made / "train-000000.tar"
    index_path(tar).unlink()
    url = f"file://{tar}"
    assert SampleStore([url], "train", cache).keys == ["s0", "s1", "s2"]
    content = tar.read_bytes()
    # Both names have the same length and the same sum of bytes, on which a tar's header is checked.
    tar.write_bytes(content.replace(b"s0.", b"0s."))
    os.utime(tar, (1, 1))
    store = SampleStore([url], "train", cache)
    assert store.keys == ["0s", "s1", "s2"]
    assert store.read(0).key == "0s"


def test_a_shard_that_is_replaced_under_an_open_store_is_told(tmp_path: Path, shards: Path, bucket: Any) -> None:
    root, cache = upload(bucket, shards), ShardCache(tmp_path / "cache", 10**6)
    store = SampleStore.open(root, "train", cache)
    tar = shards / "train-000001.tar"
    tar.write_bytes(tar.read_bytes().replace(b"s3.", b"3s."))
    upload(bucket, shards)
    assert store.read(0).key == "s0"
    with pytest.raises(DataError, match=r"train-000001.tar was replaced by another version since it was opened; sta"):
        store.read(EACH)
    assert not list(cache.folder.glob("*.part"))


def test_an_index_of_another_remote_tar_is_told(tmp_path: Path, shards: Path, bucket: Any) -> None:
    root = upload(bucket, shards)
    bucket.upload_file(str(shards / "train-000000.tar"), "data/train-000001.tar")
    bucket.put_object(Key="data/train-000002.tar", Body=b"short")
    store = SampleStore.open(root, "train", ShardCache(tmp_path / "cache", 10**6))
    with pytest.raises(DataError, match=r"index s3://.*1.index.safetensors does not match its tar: no member s3.json"):
        store.read(EACH)
    with pytest.raises(DataError, match=r"s3://.*train-000002.tar has 5 bytes, its index was made of \d+"):
        store.read(2 * EACH)


def test_a_cache_stays_within_its_limit_and_evicts_what_was_used_least_recently(
    tmp_path: Path, shards: Path, bucket: Any
) -> None:
    root = upload(bucket, shards)
    size = (shards / "train-000000.tar").stat().st_size
    cache = ShardCache(tmp_path / "cache", 2 * size + size // 2)
    urls = split_shards(root, "train")
    cache.get(urls[0])
    cache.get(urls[1])
    time.sleep(0.01)
    cache.get(urls[0])
    cache.get(urls[2])
    assert [cache.path(url, remote_version(url)).exists() for url in urls[:3]] == [True, False, True]
    store = SampleStore.open(root, "train", cache)
    for i in [*range(len(store)), *reversed(range(len(store)))]:
        assert store.read(i).key == f"s{i}"
        assert held(cache.folder) <= cache.max_bytes


def test_what_is_evicted_stays_readable_where_it_is_open(tmp_path: Path, shards: Path, bucket: Any) -> None:
    cache = ShardCache(tmp_path / "cache", 10**6)
    store = SampleStore.open(upload(bucket, shards), "train", cache)
    store.read(0)
    shutil.rmtree(cache.folder)
    assert store.read(0).key == "s0"
    copy = pickle.loads(pickle.dumps(store))
    assert copy.read(1).key == "s1"
    assert cache.path(store.shards[0], remote_version(store.shards[0])).exists()


def test_a_shard_larger_than_the_cache(tmp_path: Path, shards: Path, bucket: Any) -> None:
    store = SampleStore.open(upload(bucket, shards), "train", ShardCache(tmp_path / "cache", 5000))
    with pytest.raises(DataError, match=r"train-000000.tar has \d+ bytes, more than the 5000 that .*cache may hold$"):
        store.read(0)
    assert held(tmp_path / "cache") == 0


def test_what_a_killed_process_left_makes_room(tmp_path: Path, shards: Path, bucket: Any) -> None:
    size = (shards / "train-000000.tar").stat().st_size
    cache = ShardCache(tmp_path / "cache", size)
    cache.folder.mkdir()
    cache.path("s3://bucket/other.tar", "1", ".part").write_bytes(bytes(size))
    cache.get(upload(bucket, shards) + "/train-000000.tar")
    assert held(cache.folder) == size


def read_all(store: SampleStore, order: list[int], too_much: Any, limit: int, folder: Path) -> None:
    """What a worker does; tells by its exit status whether all was right."""
    for i in order:
        assert store.read(i).key == f"s{i}"
        sizes = []
        for path in folder.iterdir():
            try:
                sizes.append(path.stat().st_size)
            except FileNotFoundError:
                continue
        too_much.value += sum(sizes) > limit


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_two_processes_share_a_cache_that_is_too_small_for_both(
    tmp_path: Path, shards: Path, bucket: Any, method: str
) -> None:
    size = (shards / "train-000000.tar").stat().st_size
    cache = ShardCache(tmp_path / "cache", size + size // 2)
    store = SampleStore.open(upload(bucket, shards), "train", cache)
    store.read(0)
    context = multiprocessing.get_context(method)
    too_much = context.Value("i", 0)
    orders = ([*range(12)], [*reversed(range(12))])
    work = [
        context.Process(target=read_all, args=(store, order, too_much, cache.max_bytes, cache.folder))
        for order in orders
    ]
    for process in work:
        process.start()
    for process in work:
        process.join(60)
    assert [process.exitcode for process in work] == [0, 0]
    assert too_much.value == 0
    assert not list(cache.folder.glob("*.part"))


def test_processes_that_want_the_same_shard_fetch_it_once(
    tmp_path: Path, shards: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, cache = upload(bucket, shards) + "/train-000000.tar", ShardCache(tmp_path / "cache", 10**6)
    fetched = []
    fetch = ShardCache._fetch
    monkeypatch.setattr(ShardCache, "_fetch", lambda self, *args: (fetched.append(1), fetch(self, *args)))
    threads = [threading.Thread(target=cache.get, args=(url,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == 1


def test_a_download_that_breaks_off_leaves_nothing(
    tmp_path: Path, shards: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, cache = upload(bucket, shards) + "/train-000000.tar", ShardCache(tmp_path / "cache", 10**6)
    with monkeypatch.context() as patch:
        patch.setattr("datamodules.storage.shard_cache._copy", lambda *_: (_ for _ in ()).throw(OSError("it is dead")))
        with pytest.raises(DataError, match=r"s3://.*train-000000.tar cannot be read: it is dead"):
            cache.get(url)
    assert held(cache.folder) == 0
    assert cache.get(url).stat().st_size == (shards / "train-000000.tar").stat().st_size


def test_a_folder_that_can_hold_nothing_is_one_sentence(tmp_path: Path, shards: Path, bucket: Any) -> None:
    url = upload(bucket, shards) + "/train-000000.tar"
    (tmp_path / "cache").write_text("not a folder")
    with pytest.raises(DataError, match=r"cache cannot hold copies of shards: (Not a directory|File exists)"):
        ShardCache(tmp_path / "cache", 10**6).get(url)


def test_files_are_put_listed_and_read(tmp_path: Path, bucket: Any) -> None:
    (tmp_path / "a").write_bytes(b"content")
    for root in (f"s3://{bucket.name}/x", f"file://{tmp_path}/below/x"):
        assert list_names(root) == []
        for name in ("b.tar", "a.tar", "deep/c.tar"):
            put_file(tmp_path / "a", f"{root}/{name}")
        assert list_names(root) == list_names(f"{root}/") == ["a.tar", "b.tar"]
        assert (read_bytes(f"{root}/a.tar"), remote_size(f"{root}/a.tar")) == (b"content", 7)
        assert (read_if_there(f"{root}/a.tar"), read_if_there(f"{root}/c.tar")) == (b"content", None)
        for look in (read_bytes, remote_size):
            with pytest.raises(DataError, match=rf"there is no {root}/c.tar"):
                look(f"{root}/c.tar")


def test_remote_specs(bucket: Any, shards: Path) -> None:
    root = upload(bucket, shards)
    names = [f"{root}/train-{number:06d}.tar" for number in range(SHARDS)]
    assert expand_shards(root) == expand_shards(f"{root}/") == expand_shards(f"{root}/train-*.tar") == names
    assert expand_shards(f"{root}/train-{{000001..000002}}.tar") == names[1:3]
    with pytest.raises(DataError, match=r"no shard s3://.*/train-000009.tar: .*/data has train-000000.tar to"):
        expand_shards(f"{root}/train-00000{{1,9}}.tar")
    with pytest.raises(DataError, match=r"no shard trian-<number>.tar in s3://.*did you mean 'train'\?"):
        split_shards(root, "trian")
    with pytest.raises(DataError, match="only the last part of a URL may have"):
        expand_shards("s3://bucket/*/a.tar")


def test_a_bucket_that_is_not_there(bucket: Any) -> None:
    with pytest.raises(DataError, match="there are no shards at all"):
        split_shards("s3://no-such-bucket/x", "train")
    with pytest.raises(DataError, match=r"there is no s3://no-such-bucket/x.tar|s3://no-such-bucket/x.tar cannot be"):
        read_bytes("s3://no-such-bucket/x.tar")


def test_remote_shards_need_a_cache() -> None:
    with pytest.raises(DataError, match=r"shard s3://b/a.tar is remote: it needs a folder to keep copies in"):
        SampleStore(["/x.tar", "s3://b/a.tar"], "train")


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith(("gcsfs", "adlfs")):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    for url, package in (("gs://bucket/a", "gcsfs"), ("abfs://box/a", "adlfs")):
        with pytest.raises(DataError, match=rf"{url}: \w+:// needs a package: pip install {package}$"):
            read_bytes(url)


def test_web_servers(tmp_path: Path, shards: Path) -> None:
    index_path(shards / "train-000001.tar").unlink()
    handler = partial(QuietHandler, directory=str(shards))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        spec = f"http://127.0.0.1:{server.server_port}/train-{{000000..000001}}.tar"
        store = SampleStore(expand_shards(spec), "train", ShardCache(tmp_path / "cache", 10**6))
        assert [store.read(i).key for i in range(len(store))] == [f"s{i}" for i in range(2 * EACH)]
        missing = spec.replace("train-{000000..000001}", "none")
        for look in (read_bytes, remote_size, ShardCache(tmp_path / "cache", 10**6).get):
            with pytest.raises(DataError, match=r"there is no http://.*/none.tar"):
                look(missing)
        busy = spec.replace("train-{000000..000001}", "busy")
        for look in (read_bytes, remote_size):
            with pytest.raises(DataError, match=r"http://.*/busy.tar cannot be (read|looked at): 503"):
                look(busy)
        server.shutdown()
    # Nobody listens there any more, which says nothing about the file.
    for look in (read_bytes, remote_size):
        with pytest.raises(DataError, match=r"http://.*/none.tar cannot be (read|looked at): Cannot connect"):
            look(missing)


class QuietHandler(SimpleHTTPRequestHandler):
    """Files of a folder, but for one that the server is too busy for."""

    def send_head(self) -> Any:
        if self.path.endswith("busy.tar"):
            self.send_error(503)
            return None
        return super().send_head()

    def log_message(self, *args: Any) -> None:
        pass


def test_places() -> None:
    assert [is_remote(place) for place in ("s3://b/x", "HTTPS://h/x", "file:///x", "/x", "x/y:z", "~/x")] == [
        *[True] * 3,
        *[False] * 3,
    ]
    with pytest.raises(DataError, match="pipe:ls cannot be used"):
        is_remote("pipe:ls")


def test_a_size_that_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.tar").write_bytes(b"x")
    monkeypatch.setattr(LocalFileSystem, "info", lambda *args, **kwargs: {"type": "file"})
    with pytest.raises(DataError, match="does not say how long it is"):
        remote_size(f"file://{tmp_path}/a.tar")
    assert os.listdir(tmp_path) == ["a.tar"]
