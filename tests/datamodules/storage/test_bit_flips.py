"""Shards and indexes of which a bit is flipped or the end is lost: told in a sentence, and what is whole is read."""

import io
import random
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.storage.index import ShardIndex, index_as_bytes, index_path, open_index, parse_index, scan_tar
from datamodules.storage.sample import SampleError
from datamodules.storage.sample_store import SampleStore
from datamodules.storage.tar_headers import HEADER, MAX_HEADERS
from fvl_lightning.core.errors import DataError

Write = Callable[..., Path]
SAMPLES = 10


@pytest.fixture
def tar(tmp_path: Path, write_split: Write) -> Path:
    return write_split(tmp_path, "train", SAMPLES) / "train-000000.tar"


def whole_samples(tar: Path) -> dict[str, tuple[Any, ...]]:
    """{key: its record and pixels} of every sample that can be read; a sample that cannot is left out."""
    found, sentences = {}, []
    try:
        store = SampleStore([str(tar)], "train")
        for i in range(len(store)):
            try:
                found[store.key(i)] = store.record(i), [image.tobytes() for image in store.images(i)]
            except SampleError as error:
                sentences.append(str(error))
    except DataError as error:
        sentences.append(str(error))
    assert "\n" not in "".join(sentences)
    return found


def flipped(content: bytes, rng: random.Random, number: int) -> Iterator[tuple[int, bytes]]:
    """Yields (the place of a bit in bytes, the content with that bit flipped)."""
    for _ in range(number):
        place, damaged = rng.randrange(len(content)), bytearray(content)
        damaged[place] ^= 1 << rng.randrange(8)
        yield place, bytes(damaged)


def same(one: ShardIndex, other: ShardIndex) -> bool:
    return index_as_bytes(one) == index_as_bytes(other)


def check_flips_of_a_tar(tar: Path, number: int, seed: int) -> None:
    """Every sample before the damage is read; one bit of a header is never overlooked, with an index or without."""
    content, index = tar.read_bytes(), index_path(tar).read_bytes()
    original, known = whole_samples(tar), scan_tar(tar)
    ends = {
        known.key(row): max(known.offsets[j] + known.sizes[j] for j in range(*known.members(row)))
        for row in range(len(known))
    }
    inside = np.zeros(len(content), dtype=bool)
    for offset, size in zip(known.offsets.tolist(), known.sizes.tolist(), strict=True):
        inside[offset : offset + -(-size // HEADER) * HEADER] = True
    last = max(ends.values())
    for place, damaged in flipped(content, random.Random(seed), number):
        tar.write_bytes(damaged)
        header = not inside[place] and place < last
        row = np.searchsorted(sorted(ends.values()), place, side="right")
        for with_index in (True, False):
            if with_index:
                index_path(tar).write_bytes(index)
            else:
                index_path(tar).unlink(missing_ok=True)
            found = whole_samples(tar)
            before = list(ends)[: row if with_index else max(0, row - 1)]
            for key in before:
                assert found[key] == original[key], (place, with_index, key)
            if header:
                assert len(found) < SAMPLES or scan_tar(tar).problems or found == original, (place, with_index)
            assert found.keys() <= original.keys() or scan_tar(tar).problems


def check_flips_of_an_index(tar: Path, number: int, seed: int) -> None:
    content = index_path(tar).read_bytes()
    index = parse_index(content, "x")
    for place, damaged in flipped(content, random.Random(seed), number):
        with suppress(DataError):
            assert same(parse_index(damaged, "x"), index), place


def test_some_flips(tar: Path) -> None:
    check_flips_of_a_tar(tar, 15, 0)


def test_flips_of_an_index_are_found_by_its_checksum(tar: Path) -> None:
    check_flips_of_an_index(tar, 300, 0)


@pytest.mark.slow
def test_many_flips(tar: Path) -> None:
    check_flips_of_a_tar(tar, 3000, 1)


@pytest.mark.slow
def test_many_flips_of_an_index(tar: Path) -> None:
    check_flips_of_an_index(tar, 10_000, 1)


@pytest.mark.slow
def test_an_index_cut_at_every_byte(tar: Path) -> None:
    content = index_path(tar).read_bytes()
    for end in range(len(content)):
        index_path(tar).write_bytes(content[:end])
        with pytest.raises(DataError, match=r"delete it and it is rebuilt$"):
            open_index(tar)


def test_an_index_of_an_earlier_version_has_no_checksum(tar: Path) -> None:
    content = index_path(tar).read_bytes()
    assert content.count(b'"checksum": ') == 1
    earlier = content.replace(b'"checksum": ', b'"checksun": ')
    assert same(parse_index(earlier, "x"), scan_tar(tar))


# Headers as other writers make them.


def add(archive: tarfile.TarFile, name: str, content: bytes, **fields: Any) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    archive.addfile(info, io.BytesIO(content))


def changed_headers(tar: Path, change: Callable[[bytearray], None]) -> None:
    """Changes every header of a tar, and its checksum."""
    content, place = bytearray(tar.read_bytes()), 0
    while content[place]:
        header = content[place : place + HEADER]
        change(header)
        header[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(header))[0]  # type: ignore[attr-defined]
        content[place : place + HEADER] = header
        place += HEADER + -(-int(header[124:135], 8) // HEADER) * HEADER
    tar.write_bytes(content)
    index_path(tar).unlink()


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("key", ["ä", "日本語/ключ", "Ä.JPG", "é" * 40, "x/" * 50 + "q", "a.b.ä"])
def test_index_and_reader_agree_about_any_name(tmp_path: Path, kind: int, key: str) -> None:
    tar = tmp_path / "train-0.tar"
    with tarfile.open(tar, "w", format=kind) as archive:
        for name in (key, "z"):
            add(archive, f"{name}.JSON", b'{"caption": "x"}')
    for _ in range(2):  # the second one opens the index that the first one has written
        store = SampleStore([str(tar)], "train")
        assert store.keys == [key, "z"]
        assert [store.record(i)["caption"] for i in range(2)] == ["x", "x"]


def test_index_and_reader_agree_about_names_that_only_an_extension_has(tmp_path: Path) -> None:
    tar = tmp_path / "train-0.tar"
    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("a.json", "b.JSON"):
            add(archive, f"@{name}", b'{"caption": "x"}', pax_headers={"path": name, "comment": "ä" * 99}, mtime=0.5)
    store = SampleStore([str(tar)], "train")
    assert [store.key(i) for i in range(len(store)) if store.record(i)] == ["a", "b"]


@pytest.mark.parametrize(
    ("magic", "prefix"),
    [(b"ustar\x0000", bytes(131) + b"14562374562 14562374562 "), (b"ustar  \0", b"14562374562\x0014562374562\0")],
)
def test_times_where_other_tars_have_a_folder(tar: Path, magic: bytes, prefix: bytes) -> None:
    """As star and GNU tar write them."""

    def change(header: bytearray) -> None:
        header[257:265], header[345:500] = magic, prefix.ljust(155, b"\0")

    changed_headers(tar, change)
    assert len(whole_samples(tar)) == SAMPLES


@pytest.mark.parametrize("kind", [b"0", b"1", b"5", b"7", b"L", b"K", b"x", b"g", b"S", b"Z"])
@pytest.mark.parametrize("size", [2**33, 2**60, 2**63 - 1, 2**64, 2**87, -1, -(2**70)])
def test_a_header_of_an_absurd_size(tar: Path, kind: bytes, size: int) -> None:
    """The samples before it are read; it is a problem, and none that ends the command."""
    original, content = whole_samples(tar), tar.read_bytes()
    end = max(int(offset + size) for offset, size in zip(scan_tar(tar).offsets, scan_tar(tar).sizes, strict=True))
    end = -(-end // HEADER) * HEADER
    info = tarfile.TarInfo("bad.json")
    info.type = kind
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT)[:HEADER])
    header[124:136] = (size % 2**96).to_bytes(12, "big")
    header[124] |= 0x80 if size >= 0 else 0xFF
    header[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(header))[0]  # type: ignore[attr-defined]
    tar.write_bytes(content[:end] + header + content[end:])
    index_path(tar).unlink()
    found = whole_samples(tar)
    assert len(found) >= SAMPLES - 1
    assert all(found[key] == original[key] for key in found)
    assert scan_tar(tar).problems or kind == b"5", "a folder has no content, whatever it says"


def test_many_extensions_of_one_header_are_not_read_into_memory(tmp_path: Path) -> None:
    tar = tmp_path / "train-0.tar"
    with tar.open("wb") as file:
        for _ in range(MAX_HEADERS // 2**19 + 1):
            info = tarfile.TarInfo("x")
            info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**19
            file.write(info.tobuf(tarfile.GNU_FORMAT) + b"a" * 2**19)
    assert list(scan_tar(tar).problems) == ["not a tar"]
