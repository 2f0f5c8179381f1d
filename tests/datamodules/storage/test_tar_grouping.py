"""What goes into a tar comes out as samples, or is refused or passed over with a count; all who read tars agree."""

import bz2
import gzip
import io
import lzma
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datamodules.building.builder import build_shards
from datamodules.building.config import BuildConfig
from datamodules.inspection.check import check_tar, index_shard
from datamodules.sources.base import Ignored, Refusal, Row
from datamodules.storage.index import index_path, load_index, save_index, scan_tar
from datamodules.storage.sample_store import SampleStore
from datamodules.storage.shard_cache import ShardCache
from datamodules.storage.tar_headers import HEADER, is_header
from fvl_lightning.core.config.loading import choose
from fvl_lightning.core.errors import DataError
from tests.datamodules.sources.reading import read, source

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
LONG = "folder" * 13 + "/{}" + "long" * 6
KEYS = ("k{}", "v{}.0_b", "2020.05.{:02d}", "dir.v1/k{}", "./k{}", "\u00e9{}", LONG, "K {}", "caf\udce9{}")


@dataclass
class Tar:
    """A tar that counts for itself what is put into it."""

    kind: int
    content: bytearray = field(default_factory=bytearray)
    used: dict[str, int] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    passed_over: int = 0
    marks: int = 0
    """End marks behind the last member."""

    def add(self, name: str, content: bytes = b"words", kind: bytes = tarfile.REGTYPE) -> None:
        """Puts a member in."""
        self.passed_over += bool(self.marks and self.content)
        self.marks = 0
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "elsewhere" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
        info.size = len(content) if kind == tarfile.REGTYPE else 0
        self.content += info.tobuf(self.kind, "utf-8", "surrogateescape")
        if kind == tarfile.REGTYPE:
            self.content += content + bytes(-len(content) % HEADER)

    def sample(self, key: str, suffixes: list[str]) -> None:
        """Puts a whole sample in."""
        for suffix in suffixes:
            self.add(f"{key}.{suffix}", b"{}" if suffix == "json" else b"words")
        self.used[key] = len(self.content)

    def mark(self, blocks: int) -> None:
        """Puts zeros in, as between tars that were put together."""
        self.content += bytes(blocks * HEADER)
        self.marks += blocks

    def finished(self) -> bytes:
        return bytes(self.content) + bytes(2 * HEADER if not self.marks else 0)


SUFFIXES = st.sampled_from(
    [
        ["jpg", "txt"],
        ["txt", "jpg"],
        ["JPG", "Txt"],
        ["json", "png", "txt"],
        ["0.gif", "1.bmp", "txt"],
        ["txt", "1.webp", "0.jpeg"],
    ]
)


def fill(tar: Tar, number: int, action: str, suffixes: list[str], form: str) -> None:
    """Puts one thing in, and counts what has to come of it."""
    key = form.format(number)
    match action:
        case "sample":
            tar.sample(key, suffixes)
        case "extras":
            tar.add(f"{key}.seg.png")
            tar.sample(key, suffixes)
            tar.add(f"{key}.meta.json")
            tar.passed_over += 2
        case "others":
            for name in (f"x{number}.npy", f"{number}", f"._k{number}.jpg", f"x{number}.tar.gz", f"x{number}.tif"):
                tar.add(name)
                tar.passed_over += 1
        case "folder":
            tar.add(f"folder{number}.jpg", kind=tarfile.DIRTYPE)
        case "unsafe":
            for name in (f"/k{number}.jpg", f"../k{number}.txt", f"a/../../{number}.json", f"a\n{number}.txt"):
                tar.add(name)
                tar.refused["unsafe name"] += 1
        case "link" | "device":
            kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE) if action == "link" else (tarfile.CHRTYPE, tarfile.FIFOTYPE)
            tar.add(f"{key}.0.jpg", kind=kinds[0])
            tar.add(f"{key}.1.jpg", kind=kinds[1])
            tar.add(f"{key}.txt")
            tar.refused["not a regular file"] += 1
        case "empty":
            tar.add(f"{key}.jpg", b"")
            tar.sample(key, ["txt"])
        case "twice":
            tar.add(f"{key}.txt")
            tar.add(f"{key}.TXT", b"others")
            tar.sample(key, ["png"])
            tar.refused["duplicate member"] += 1
        case "again":
            tar.sample(key, suffixes)
            tar.sample(f"between{number}", ["jpg", "txt"])
            for suffix in suffixes:
                tar.add(f"{key}.{suffix}")
            tar.refused["duplicate key"] += 1
        case "apart":
            tar.add(f"{key}.png")
            tar.sample(f"other{number}", ["jpg", "txt"])
            tar.sample(key, ["txt"])
        case "again apart":
            for suffix in ("jpg", "txt", "jpg", "txt"):
                tar.add(f"{key}.{suffix}")
                tar.sample(f"{suffix}{len(tar.content)}", ["jpg", "txt"])
            tar.used[key] = len(tar.content)
            tar.refused["duplicate key"] += 1
        case "label":
            tar.add(f"label {number}", kind=b"V")
            tar.passed_over += 1
        case "mark":
            tar.mark(1 + number % 3)


ACTIONS = (
    *(
        "sample",
        "extras",
        "others",
        "folder",
        "unsafe",
        "link",
        "device",
        "empty",
        "twice",
        "again",
        "apart",
        "again apart",
        "label",
        "mark",
    ),
)
Steps = list[tuple[str, list[str], str]]
STEPS = st.lists(st.tuples(st.sampled_from(ACTIONS), SUFFIXES, st.sampled_from(KEYS)), min_size=1, max_size=8)


def filled(kind: int, steps: Steps) -> Tar:
    tar = Tar(kind)
    for number, (action, suffixes, form) in enumerate(steps):
        fill(tar, number, action, suffixes, form)
    return tar


def shown(key: str) -> str:
    """A key as people see it."""
    return key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(kind=st.sampled_from(FORMATS), steps=STEPS)
def test_every_member_is_used_or_counted(tmp_path_factory: pytest.TempPathFactory, kind: int, steps: Steps) -> None:
    tar = filled(kind, steps)
    path = tmp_path_factory.mktemp("tar") / "train-0.tar"
    path.write_bytes(tar.finished())
    index = scan_tar(path)
    assert sorted(index.key(row) for row in range(len(index))) == sorted(map(shown, tar.used))
    assert {reason: problem.count for reason, problem in index.problems.items()} == tar.refused
    assert sum(index.ignored.values()) == tar.passed_over
    found = read(source("img2dataset", file=str(path)))
    rows = [row for row in found if isinstance(row, Row)]
    refusals = Counter(row.reason for row in found if isinstance(row, Refusal))
    assert len(rows) == len(index)
    assert refusals == tar.refused
    assert {over.kind: over.count for over in found if isinstance(over, Ignored)} == index.ignored
    content = path.read_bytes()
    for row in range(len(index)):
        for member in range(*index.members(row)):
            name = index.raw_key(row) + b"." + index.suffixes[index.suffix_codes[member]].encode()
            place = int(index.offsets[member])
            assert is_header(content, place - HEADER, name, int(index.sizes[member])), "training would stop here"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(kind=st.sampled_from(FORMATS), steps=STEPS, share=st.floats(0, 1, exclude_max=True), more=st.integers(0, 511))
def test_a_cut_is_counted_and_costs_one_whole_sample_at_most(
    tmp_path_factory: pytest.TempPathFactory, kind: int, steps: Steps, share: float, more: int
) -> None:
    tar = filled(kind, steps)
    while tar.marks:  # zeros at the end are no loss
        tar.content = tar.content[:-HEADER]
        tar.marks -= 1
    path = tmp_path_factory.mktemp("tar") / "train-0.tar"
    cut = int(share * len(tar.content)) // HEADER * HEADER + more
    content = tar.finished()[:cut]
    path.write_bytes(content)
    index = scan_tar(path)
    ends_in_zeros = len(content) >= HEADER and not any(content[len(content) // HEADER * HEADER - HEADER :])
    assert index.damaged or ends_in_zeros, "a cut right behind an end mark is the end of another tar"
    keys = {index.key(row) for row in range(len(index))}
    assert len({shown(key) for key, end in tar.used.items() if end <= cut} - keys) <= 1
    if index.damaged and len(content) >= HEADER:
        found = read_or_refuse(path)
        assert not found or {one.reason for one in found if isinstance(one, Refusal)} & index.problems.keys()


def read_or_refuse(path: Path) -> list[Any]:
    try:
        return read(source("img2dataset", file=str(path)))
    except DataError:
        return []


def image(colour: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """Two tars put together, with a bit of everything in them."""
    tar = Tar(tarfile.PAX_FORMAT)
    for number, key in enumerate(("v1.0_b", "2020.05.01", "\u00e9", "plain")):
        tar.add(f"{key}.png", image(number))
        tar.add(f"{key}.txt", key.encode())
        tar.mark(2 * (number == 1))
    tar.add("plain.seg.png", image(9))
    tar.add("._plain.png", b"resource fork")
    tar.add("plain.TXT", b"again")
    tar.add("/absolute.txt")
    tar.add("link.png", kind=tarfile.SYMTYPE)
    tar.add("link.txt")
    (tmp_path / "theirs").mkdir()
    path = tmp_path / "theirs" / "train-0.tar"
    path.write_bytes(tar.finished())
    return path


def test_index_check_build_and_training_agree(theirs: Path, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 2**30)
    expected = {"duplicate member": 1, "unsafe name": 1, "not a regular file": 1}
    passed_over = {"(end mark)": 1, "seg.png": 1, "(hidden)": 1}
    checked = check_tar({}, cache, str(theirs)).findings
    indexed = index_shard(cache, str(theirs))
    assert checked.counts == indexed.counts == expected
    assert checked.ignored == indexed.ignored == passed_over
    store = SampleStore([str(theirs)], "train")
    assert {reason: found.count for reason, found in store.problems.items()} == expected
    assert indexed.samples == len(store) == 4
    words = {"file": str(theirs)}
    config = BuildConfig(
        source=choose("source", {"name": "img2dataset", **words}), output=str(tmp_path / "ours"), processes=1
    )
    manifest = build_shards(config)
    assert (manifest.samples, manifest.refused, manifest.passed_over) == (4, expected, passed_over)
    ours = SampleStore.open(tmp_path / "ours", "train")
    assert [ours.record(i)["caption"] for i in range(4)] == [store.record(i)["caption"] for i in range(4)]
    assert [ours.images(i)[0].tolist() for i in range(4)] == [store.images(i)[0].tolist() for i in range(4)]
    assert build_shards(config).passed_over == passed_over


def test_an_index_of_an_earlier_version_is_made_again_where_it_left_something_out(
    theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = scan_tar(theirs)
    for ignored, is_kept in (({"pkl": 1}, False), ({}, True)):
        with monkeypatch.context() as before:
            before.setattr("datamodules.storage.index.VERSION", 1)
            old = {**vars(index), "problems": {}, "ignored": ignored}
            save_index(type(index)(**old), index_path(theirs))
        assert (load_index(theirs) is not None) == is_kept


@pytest.mark.parametrize(
    ("pack", "name"),
    [
        (gzip.compress, "gzip"),
        (bz2.compress, "bzip2"),
        (lzma.compress, "xz"),
    ],
)
def test_a_compressed_tar_is_told_as_one(theirs: Path, pack: Callable[[bytes], bytes], name: str) -> None:
    theirs.write_bytes(pack(theirs.read_bytes()))
    said = f"it is compressed ({name}), unpack it first"
    assert scan_tar(theirs).problems["not a tar"].examples == (said,)
    with pytest.raises(DataError, match=r"it is compressed .* unpack it first"):
        list(source("img2dataset", file=str(theirs)).chunks())
