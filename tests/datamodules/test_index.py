"""Shards, their indexes, and what is wrong with either."""

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from datamodules.index import HEADER, index_path, open_index, scan_tar, write_index
from datamodules.store import SampleStore
from datamodules.writer import ShardWriter
from fvl_lightning.core.errors import DataError

Write = Callable[..., Path]


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def test_webdatasets_own_reader_reads_our_shards(tmp_path: Path, write_split: Write) -> None:
    write_split(tmp_path, "train", 7, samples_per_shard=4)
    urls = [str(path) for path in sorted(tmp_path.glob("train-*.tar"))]
    assert len(urls) == 2
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == [f"s{i}" for i in range(7)]
    assert samples[5]["json"]["messages"][1]["content"] == "5"
    assert samples[5]["png"].shape == (6, 8, 3)
    store = SampleStore(tmp_path, "train")
    assert store.record(5) == samples[5]["json"]
    assert np.array_equal(store.images(5)[0], samples[5]["png"])


def test_equal_samples_give_equal_bytes(tmp_path: Path, write_split: Write) -> None:
    one, other = (write_split(tmp_path / name, "train", 3) for name in ("one", "other"))
    assert (one / "train-000000.tar").read_bytes() == (other / "train-000000.tar").read_bytes()
    assert index_path(one / "train-000000.tar").read_bytes() == index_path(other / "train-000000.tar").read_bytes()
    assert SampleStore(one, "train").manifest_hash() == SampleStore(other, "train").manifest_hash()
    more = write_split(tmp_path / "more", "train", 4)
    assert SampleStore(more, "train").manifest_hash() != SampleStore(one, "train").manifest_hash()


def test_a_tar_without_index_is_indexed_on_first_use(tmp_path: Path, write_split: Write) -> None:
    tar = write_split(tmp_path, "train", 3) / "train-000000.tar"
    written = index_path(tar).read_bytes()
    index_path(tar).unlink()
    assert SampleStore(tmp_path, "train").keys == ["s0", "s1", "s2"]
    assert index_path(tar).read_bytes() == written


def test_foreign_tars(tmp_path: Path, image_bytes: Callable[..., bytes]) -> None:
    """Folders in keys, directories, other members, upper case, images out of order, long names, text only."""
    tar, long = tmp_path / "train-0.tar", "k" * 120
    with tarfile.open(tar, "w", format=tarfile.GNU_FORMAT) as archive:
        folder = tarfile.TarInfo("part")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for number in (10, 2, 0, 1):
            add(archive, f"part/a.{number}.png", image_bytes(number))
        add(archive, "part/a.json", b"{}")
        add(archive, "part/a.pkl", b"cos\nsystem\n(S'true'\ntR.")
        add(archive, "part/a.mask.png", image_bytes(9))
        add(archive, "b.JPG", image_bytes(77, kind="JPEG"))
        add(archive, "b.txt", b" a caption \n")
        add(archive, f"{long}.json", b'{"caption": "long"}')
    store = SampleStore(tmp_path, "train")
    assert store.keys == ["part/a", "b", long]
    assert [int(image[1, 1, 0]) for image in store.images(0)] == [0, 1, 2, 10]
    assert store.image_count(0) == 4
    assert abs(int(store.images(1)[0][5, 7, 0]) - 77) < 12
    assert store.record(1) == {"caption": "a caption"}
    assert store.record(2) == {"caption": "long"}
    assert store.images(2) == []


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_recognised_in_every_kind_of_tar(tmp_path: Path, kind: int) -> None:
    key = "/".join(["folder" * 5] * 5) + "/name"
    with tarfile.open(tmp_path / "train-0.tar", "w", format=kind) as archive:
        add(archive, f"{key}.json", b'{"caption": "x"}')
    assert SampleStore(tmp_path, "train").key(0) == key
    assert SampleStore(tmp_path, "train").record(0) == {"caption": "x"}


def test_an_index_of_another_tar_is_told_by_its_size(tmp_path: Path, write_split: Write) -> None:
    tar = write_split(tmp_path, "train", 3) / "train-000000.tar"
    with tar.open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(DataError, match=r"index .*train-000000.index.npz does not match its tar: .*delete the index"):
        SampleStore(tmp_path, "train")


def test_an_index_of_another_tar_of_equal_size_is_told_at_the_first_read(tmp_path: Path, write_split: Write) -> None:
    one = write_split(tmp_path / "one", "train", 3)
    with ShardWriter(tmp_path / "other", "train") as writer:
        for i in range(3):
            writer.write(f"t{i}", SampleStore(one, "train").record(i), [b"x" * 100])
    os.replace(tmp_path / "other" / "train-000000.tar", one / "train-000000.tar")
    store = SampleStore(one, "train")
    with pytest.raises(DataError, match=r"does not match its tar: no member s0.json at byte 0; delete the index"):
        store.record(0)


def test_a_broken_index_is_one_sentence(tmp_path: Path, write_split: Write) -> None:
    tar = write_split(tmp_path, "train", 3) / "train-000000.tar"
    index_path(tar).write_bytes(b"not an index")
    with pytest.raises(DataError, match=r"index .* can't be read .*delete it and it is rebuilt"):
        open_index(tar)
    np.savez(index_path(tar), keys=np.array(["a"]))
    with pytest.raises(DataError, match="can't be read"):
        open_index(tar)


def test_pickled_indexes_are_not_loaded(tmp_path: Path, write_split: Write) -> None:
    tar = write_split(tmp_path, "train", 1) / "train-000000.tar"
    with np.load(index_path(tar)) as arrays:
        np.savez(index_path(tar), **{**arrays, "keys": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(DataError, match="can't be read"):
        open_index(tar)


@pytest.mark.parametrize("lost", [1, 700, 9000, 10240])
def test_a_tar_cut_short_is_refused(tmp_path: Path, write_split: Write, lost: int) -> None:
    tar = write_split(tmp_path, "train", 8) / "train-000000.tar"
    content = tar.read_bytes().rstrip(b"\0")
    index_path(tar).unlink()
    tar.write_bytes(content[:-lost])
    with pytest.raises(DataError, match=r"shard .*train-000000.tar .*(cut short|can't be read as a tar)"):
        write_index(tar)
    assert not index_path(tar).exists()


def test_a_tar_that_ends_between_two_members_is_refused(tmp_path: Path, write_split: Write) -> None:
    """Nothing in it is broken, but the samples behind are lost; only the missing end mark tells."""
    tar = write_split(tmp_path, "train", 8) / "train-000000.tar"
    boundary = int(scan_tar(tar).offsets[6]) - HEADER
    tar.write_bytes(tar.read_bytes()[:boundary])
    with pytest.raises(DataError, match="cut short or damaged: its end mark is missing"):
        write_index(tar)


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"hello", bytes(range(256)) * 8):
        (tmp_path / "train-0.tar").write_bytes(content)
        with pytest.raises(DataError, match=r"train-0\.tar can't be read as a tar"):
            SampleStore(tmp_path, "train")


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
        add(archive, "a.json", b"{}")
        add(archive, "a.json", b"{}")
    with pytest.raises(DataError, match=r"sample 'a' has two members named a.json"):
        scan_tar(tmp_path / "train-0.tar")


def test_an_interrupted_writer_leaves_whole_shards_only(
    tmp_path: Path, make_talk: Callable[..., dict[str, Any]]
) -> None:
    def interrupted() -> None:
        with ShardWriter(tmp_path, "train", samples_per_shard=2) as writer:
            for i in range(3):
                writer.write(f"s{i}", make_talk("q", "a", 0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train-000000.index.npz", "train-000000.tar"]
    assert len(SampleStore(tmp_path, "train")) == 2


def test_a_folder_that_cannot_be_written_is_indexed_in_memory(
    tmp_path: Path, write_split: Write, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tar = write_split(tmp_path, "train", 2) / "train-000000.tar"
    index_path(tar).unlink()

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("datamodules.index.save_index", refuse)
    assert len(SampleStore(tmp_path, "train")) == 2
    assert "can't be written (Permission denied)" in caplog.text
