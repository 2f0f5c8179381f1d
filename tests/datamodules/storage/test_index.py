"""Shards, their indexes, and what is wrong with either."""

import io
import os
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from datamodules.storage.index import (
    index_as_bytes,
    index_path,
    make_index,
    open_index,
    parse_index,
    scan_tar,
    write_index,
)
from datamodules.storage.sample_store import SampleStore
from datamodules.storage.shard_files import DAMAGED
from datamodules.storage.tar_grouping import MAX_TEXT_BYTES, Problem
from datamodules.storage.tar_headers import HEADER
from datamodules.storage.writer import ShardWriter
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
    store = SampleStore.open(tmp_path, "train")
    assert store.record(5) == samples[5]["json"]
    assert np.array_equal(store.images(5)[0], samples[5]["png"])


def test_equal_samples_give_equal_bytes(tmp_path: Path, write_split: Write) -> None:
    one, other = (write_split(tmp_path / name, "train", 3) for name in ("one", "other"))
    assert (one / "train-000000.tar").read_bytes() == (other / "train-000000.tar").read_bytes()
    assert index_path(one / "train-000000.tar").read_bytes() == index_path(other / "train-000000.tar").read_bytes()
    assert SampleStore.open(one, "train").manifest_hash() == SampleStore.open(other, "train").manifest_hash()
    more = write_split(tmp_path / "more", "train", 4)
    assert SampleStore.open(more, "train").manifest_hash() != SampleStore.open(one, "train").manifest_hash()


def test_a_tar_without_index_is_indexed_on_first_use(tmp_path: Path, write_split: Write) -> None:
    tar = write_split(tmp_path, "train", 3) / "train-000000.tar"
    written = index_path(tar).read_bytes()
    index_path(tar).unlink()
    assert SampleStore.open(tmp_path, "train").keys == ["s0", "s1", "s2"]
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
        add(archive, "b.JPEG", image_bytes(77, kind="JPEG"))
        add(archive, "b.txt", b" a caption \n")
        add(archive, f"{long}.json", b'{"caption": "long"}')
    store = SampleStore.open(tmp_path, "train")
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
    assert SampleStore.open(tmp_path, "train").key(0) == key
    assert SampleStore.open(tmp_path, "train").record(0) == {"caption": "x"}


def test_an_index_of_another_tar_is_told_by_its_size(tmp_path: Path, write_split: Write) -> None:
    tar = write_split(tmp_path, "train", 3) / "train-000000.tar"
    with tar.open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(DataError, match=r"index .*000.index.safetensors does not match its tar: .*delete the index"):
        SampleStore.open(tmp_path, "train")


def test_an_index_of_another_tar_of_equal_size_is_told_at_the_first_read(tmp_path: Path, write_split: Write) -> None:
    one = write_split(tmp_path / "one", "train", 3)
    with ShardWriter(tmp_path / "other", "train") as writer:
        for i in range(3):
            writer.write(f"t{i}", SampleStore.open(one, "train").record(i), [b"x" * 100])
    os.replace(tmp_path / "other" / "train-000000.tar", one / "train-000000.tar")
    store = SampleStore.open(one, "train")
    with pytest.raises(DataError, match=r"not match its tar: no member s0.json of \d+ bytes at byte 0; delete the"):
        store.record(0)


def test_a_broken_index_is_one_sentence(tmp_path: Path, write_split: Write) -> None:
    tar = write_split(tmp_path, "train", 3) / "train-000000.tar"
    whole = index_path(tar).read_bytes()
    for content in (b"", b"not an index", whole[:-1], whole[:40], save({"keys": np.zeros(3)})):
        index_path(tar).write_bytes(content)
        with pytest.raises(DataError, match=r"index .* cannot be read .*delete it and it is rebuilt") as error:
            open_index(tar)
        assert "\n" not in str(error.value)


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "key_ends": lambda ends: ends + np.uint32(1),
    "member_ends": lambda ends: ends[::-1].copy(),
    "suffix_codes": lambda codes: codes + np.uint8(200),
    "offsets": lambda offsets: offsets - 2**40,
    "sizes": lambda sizes: sizes.astype(np.float32),
    "summary": lambda summary: summary[:-1],
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_index_that_contradicts_itself_is_refused(tmp_path: Path, write_split: Write, name: str) -> None:
    tar = write_split(tmp_path, "train", 3) / "train-000000.tar"
    arrays = load(index_path(tar).read_bytes())
    index_path(tar).write_bytes(save({**arrays, name: CHANGES[name](arrays[name])}))
    with pytest.raises(DataError, match="cannot be read"):
        open_index(tar)


def test_an_index_is_what_was_made_after_writing_and_reading(tmp_path: Path) -> None:
    """Also with more suffixes than a byte can number, an empty key table, and text that is not ASCII."""
    many = [(f"{number}.png", 512 * (number + 1), 7) for number in range(300)]
    for samples in ([], [("\u00e9/\u732b".encode(), many), (b"b", [("json", 512, 0)])]):
        index = make_index(samples, 10**6, ignored={"pkl": 3})
        copy = parse_index(index_as_bytes(index), "x")
        assert [copy.key(row) for row in range(len(copy))] == [key.decode() for key, _ in samples]
        assert [
            [
                (copy.suffixes[copy.suffix_codes[j]], int(copy.offsets[j]), int(copy.sizes[j]))
                for j in range(*copy.members(row))
            ]
            for row in range(len(copy))
        ] == [members for _, members in samples]
        assert (copy.tar_bytes, dict(copy.ignored)) == (10**6, {"pkl": 3})


@pytest.mark.parametrize("lost", [1, 700, 3000, 9000])
def test_of_a_tar_cut_short_all_that_is_whole_is_there(tmp_path: Path, write_split: Write, lost: int) -> None:
    tar = write_split(tmp_path, "train", 8) / "train-000000.tar"
    whole, images = tar.read_bytes(), SampleStore.open(tmp_path, "train").images(0)
    headers = scan_tar(tar).offsets
    index_path(tar).unlink()
    tar.write_bytes(whole.rstrip(b"\0")[:-lost])
    index = write_index(tar)
    assert index.problems["cut short"].count == 1
    # Only the header of the next sample says that there is no more of one.
    assert len(index) == sum(offset <= tar.stat().st_size for offset in headers[2::2])
    assert not index_path(tar).exists(), "it may be a copy that is not finished yet"
    store = SampleStore.open(tmp_path, "train")
    assert store.keys == [f"s{i}" for i in range(len(index))]
    assert np.array_equal(store.images(0)[0], images[0])
    tar.write_bytes(whole)
    assert len(SampleStore.open(tmp_path, "train")) == 8


def test_of_a_tar_that_ends_between_two_members_the_last_sample_is_not_trusted(
    tmp_path: Path, write_split: Write
) -> None:
    """Nothing in it is broken, but members of the last sample may be lost; only the missing end mark tells."""
    tar = write_split(tmp_path, "train", 8) / "train-000000.tar"
    boundary = int(scan_tar(tar).offsets[7]) - HEADER
    tar.write_bytes(tar.read_bytes()[:boundary])
    index = write_index(tar)
    assert ([index.key(row) for row in range(len(index))], list(index.problems)) == (["s0", "s1", "s2"], ["cut short"])


def test_of_a_tar_with_a_damaged_header_what_is_before_it_is_there(tmp_path: Path, write_split: Write) -> None:
    tar = write_split(tmp_path, "train", 8) / "train-000000.tar"
    content = bytearray(tar.read_bytes())
    place = int(scan_tar(tar).offsets[6]) - HEADER
    content[place : place + HEADER] = b"x" * HEADER
    tar.write_bytes(content)
    assert (len(scan_tar(tar)), list(scan_tar(tar).problems)) == (2, ["damaged"])


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "empty file"), (b"hello", "not a tar"), (bytes(range(256)) * 8, "not a tar")]
)
def test_what_is_no_tar_has_no_samples(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "train-0.tar").write_bytes(content)
    assert dict(scan_tar(tmp_path / "train-0.tar").problems) == {reason: Problem(1)}
    with pytest.raises(DataError, match=rf"shard .*train-0\.tar holds no samples: 1 x {reason}"):
        SampleStore.open(tmp_path, "train")


def test_a_missing_tar_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"shard .*a\.tar cannot be read: No such file"):
        open_index(tmp_path / "a.tar")


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 6143), value=st.integers(0, 255), length=st.integers(1, 600))
def test_no_damage_goes_unnoticed(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int, length: int
) -> None:
    """Bytes anywhere, headers of every kind among them, overwritten: all samples, or a word about it."""
    tar = tmp_path_factory.mktemp("damage") / "train-0.tar"
    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as archive:
        for key in ("a", "\u00e9" * 80, "b"):
            add(archive, f"{key}.json", b"{}")
    content = bytearray(tar.read_bytes())
    content[place : place + length] = bytes([value]) * length
    tar.write_bytes(content)
    index = scan_tar(tar)
    assert len(index) == 3 or index.problems or index.ignored


def test_a_header_with_a_forged_extension_is_not_read_into_memory(tmp_path: Path) -> None:
    """Also one that says it is shorter than nothing, which is the rest of the file to some parsers."""
    for size in (200 * 2**20, -1):
        long = tarfile.TarInfo("x")
        long.type = tarfile.XHDTYPE
        header = bytearray(long.tobuf())
        header[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
        header[148:156] = b"%06o\0 " % tarfile.calc_chksums(header)[0]
        with (tmp_path / "train-0.tar").open("wb") as file:
            file.write(header)
            file.truncate(300 * 2**20)
        tracemalloc.start()
        problems = scan_tar(tmp_path / "train-0.tar").problems
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert list(problems) == ["not a tar"]
        assert peak < 5 * 2**20


def test_a_header_of_zeros_is_not_taken_for_the_end(tmp_path: Path, write_split: Write) -> None:
    tar = write_split(tmp_path, "train", 8) / "train-000000.tar"
    content = bytearray(tar.read_bytes())
    place = int(scan_tar(tar).offsets[6]) - HEADER
    content[place : place + 3 * HEADER] = bytes(3 * HEADER)
    tar.write_bytes(content)
    assert (len(scan_tar(tar)), list(scan_tar(tar).problems)) == (2, ["damaged"])


def test_the_first_of_two_samples_or_members_of_one_name_is_kept(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
        add(archive, "a.json", b'{"n": 1}')
        add(archive, "a.JSON", b'{"n": 2}')
        add(archive, "b.json", b'{"n": 3}')
        add(archive, "a.json", b'{"n": 4}')
        add(archive, "a.png", b"")
        add(archive, "c.json", b'{"n": 5}')
    store = SampleStore.open(tmp_path, "train")
    assert [(store.key(i), store.record(i)["n"]) for i in range(len(store))] == [("a", 1), ("b", 3), ("c", 5)]
    counts = {reason: (found.count, found.examples) for reason, found in store.problems.items()}
    where = f"{tmp_path}/train-0.tar: "
    assert counts == {"duplicate member": (1, (f"{where}a.JSON",)), "duplicate key": (1, (f"{where}a",))}


@pytest.mark.parametrize(
    "name", ["../a.json", "x/../a.json", "/a.json", "C:\\a.json", "..\\a.json", "a\nb.json", "a\x1b[2J.json"]
)
def test_unsafe_names_are_refused(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
        add(archive, name, b"{}")
        add(archive, "./good..name/b.json", b"{}")
    index = scan_tar(tmp_path / "train-0.tar")
    assert index.key(0) == "./good..name/b"
    assert (len(index), dict(index.problems)) == (1, {"unsafe name": Problem(1, (name,))})


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_a_sample_with_a_member_that_is_no_file_is_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
        add(archive, "a.json", b"{}")
        special = tarfile.TarInfo("a.png")
        special.type, special.linkname = kind, "/etc/hostname"
        archive.addfile(special)
        add(archive, "b.json", b"{}")
    index = scan_tar(tmp_path / "train-0.tar")
    assert [index.key(row) for row in range(len(index))] == ["b"]
    assert dict(index.problems) == {"not a regular file": Problem(1, ("a.png",))}


def test_a_text_that_is_too_large_is_not_indexed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
        add(archive, "a.json", bytes(MAX_TEXT_BYTES + 1))
        add(archive, "b.json", bytes(MAX_TEXT_BYTES))
    index = scan_tar(tmp_path / "train-0.tar")
    assert (index.key(0), dict(index.problems)) == ("b", {"too large": Problem(1, ("a.json",))})


def test_members_that_say_nothing_to_us_are_counted_by_suffix(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
        for name in ("a.json", "a.pkl", "b.PKL", "a.pyd", "README", "a.mask.png", "a.%s.json" % ("9" * 5000)):
            add(archive, name, b"x")
        for number in range(200):
            add(archive, f"x.{number}x", b"")
    index = scan_tar(tmp_path / "train-0.tar")
    assert (len(index), dict(index.problems)) == (1, {})
    assert [index.ignored[suffix] for suffix in ("pkl", "pyd", "mask.png", "(none)")] == [2, 1, 1, 1]
    assert sum(index.ignored.values()) == 206
    assert len(index.ignored) == 101


def test_names_that_are_not_utf8_are_read_and_shown(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train-0.tar", "w", format=tarfile.USTAR_FORMAT, encoding="latin-1") as archive:
        add(archive, "caf\u00e9.json", b"{}")
    store = SampleStore.open(tmp_path, "train")
    assert (store.key(0), store.record(0)) == ("caf\\xe9", {})
    assert store.read(0).key == "caf\\xe9"


def test_shards_made_elsewhere_are_told_once_and_damaged_ones_each(
    tmp_path: Path, write_split: Write, caplog: pytest.LogCaptureFixture
) -> None:
    write_split(tmp_path, "train", 9, samples_per_shard=3)
    for number in (0, 2):
        index_path(tmp_path / f"train-{number:06d}.tar").unlink()
    (tmp_path / "train-000002.tar").write_bytes(b"")
    with caplog.at_level("INFO"):
        assert len(SampleStore.open(tmp_path, "train")) == 6
    assert [record.getMessage().replace(str(tmp_path), "") for record in caplog.records] == [
        "2 of 3 shards have no index (such as /train-000000.tar): scanned now",
        f"1 of 3 shards are damaged (such as /train-000002.tar): {DAMAGED}",
        "shard /train-000002.tar: 1 x empty file",
    ]


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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train-000000.index.safetensors", "train-000000.tar"]
    assert len(SampleStore.open(tmp_path, "train")) == 2


def test_a_folder_that_cannot_be_written_is_indexed_in_memory(
    tmp_path: Path, write_split: Write, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tar = write_split(tmp_path, "train", 2) / "train-000000.tar"
    index_path(tar).unlink()

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("datamodules.storage.index.save_index", refuse)
    assert len(SampleStore.open(tmp_path, "train")) == 2
    assert "Permission denied), so the next run makes it again" in caplog.text
