"""Tars of captioned images come out as they went in; nothing in them leads elsewhere."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from datamodules.sources import img2dataset
from datamodules.sources.base import Ignored, Refusal, Row
from datamodules.storage import tar_grouping as scan
from fvl_lightning.core.errors import DataError
from tests.datamodules.sources.conftest import SECRET
from tests.datamodules.sources.reading import PNG, places, read, reasons, source, write_tar

FIELDS = {"caption": " alt text", "vlm_caption": "A dog.", "width": 5, "error": None, "exif": "{}", "size": [1, 2]}


def dumped(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def only(path: Path, **fields: Any) -> Row | Refusal:
    (row,) = read(source("img2dataset", file=str(path), **fields))
    return row


def test_samples_come_out_exactly(tmp_path: Path) -> None:
    members = [
        ("000000000.jpg", b"first"),
        ("000000000.json", dumped(**FIELDS, key="000000000")),
        ("000000000.txt", b"alt text"),
        ("folder/1.PNG", b"second"),
        ("folder/1.txt", " ☃ a\nb\n".encode()),
        ("2.json", dumped(caption=None, url="u")),
        ("2.webp", b"third"),
        ("2.txt", b"from the text"),
        ("3.2.jpeg", b"three"),
        ("3.10.jpeg", b"eleven"),
        ("3.0.jpeg", b"one"),
        ("3.txt", b"three images"),
    ]
    path = write_tar(tmp_path / "00000.tar", members)
    assert read(source("img2dataset", file=str(path))) == [
        Row(
            {"vlm_caption": "A dog.", "width": 5, "exif": "{}", "key": "000000000", "caption": " alt text"}, (b"first",)
        ),
        Row({"caption": "☃ a\nb"}, (b"second",)),
        Row({"url": "u", "caption": "from the text"}, (b"third",)),
        Row({"caption": "three images"}, (b"one", b"three", b"eleven")),
    ]


def test_the_caption_is_the_field_that_is_named(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [("0.jpg", b"x"), ("0.json", dumped(**FIELDS)), ("0.txt", b"alt text")])
    found = only(path, caption_field="vlm_caption")
    assert isinstance(found, Row)
    assert found.record["caption"] == "A dog."
    # What is asked for is not replaced by something else.
    assert only(path, caption_field="other_caption") == Refusal("no caption", "")


def test_tars_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write_tar(tmp_path / f"{name}.tar", [("0.jpg", b"x"), ("0.txt", name.encode())])
    one = source("img2dataset", file=str(tmp_path / "*.tar"))
    assert [row.record["caption"] for row in read(one)] == ["a", "b", "c"]
    assert len(list(one.chunks())) == 3


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("1.jpg", b"x")], "no caption"),
        ([("1.jpg", b"x"), ("1.txt", b" \n")], "no caption"),
        ([("1.jpg", b"x"), ("1.json", dumped(caption=3))], "no caption"),
        ([("1.txt", b"words")], "missing image"),
        ([("1.jpg", b"x"), ("1.json", b"{")], "bad JSON"),
        ([("1.jpg", b"x"), ("1.json", b"[1]")], "bad JSON"),
        ([("1.jpg", b"x"), ("1.json", b"\xff")], "bad JSON"),
        ([("1.jpg", b"x"), ("1.json", b"[" * 100_000)], "bad JSON"),
    ],
)
def test_a_broken_sample_is_refused_and_the_rest_goes_on(
    tmp_path: Path, members: list[tuple[str, bytes]], reason: str
) -> None:
    good = [[(f"{key}.jpg", b"x"), (f"{key}.txt", b"words")] for key in (0, 2)]
    path = write_tar(tmp_path / "0.tar", [*good[0], *members, *good[1]])
    assert reasons(read(source("img2dataset", file=str(path)))) == ["", reason, ""]


def header(name: str, kind: bytes, target: str = "") -> tuple[str, tarfile.TarInfo]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return name, member


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_are_never_followed(tmp_path: Path, images: Path, kind: bytes) -> None:
    for target in (str(tmp_path / "outside.png"), "../outside.png", "0.png"):
        members = [("0.png", SECRET), ("0.txt", b"fine"), header("1.png", kind, target), ("1.txt", b"words")]
        found = read(source("img2dataset", file=str(write_tar(tmp_path / "0.tar", members))))
        assert found == [Row({"caption": "fine"}, (SECRET,)), Refusal("not a regular file", "1.png")]


def test_devices_and_unsafe_names_are_refused_and_pickles_passed_over(tmp_path: Path) -> None:
    members = [
        ("0.jpg", b"x"),
        ("0.pkl", b"cos\nsystem\n(S'false'\ntR."),
        ("0.pickle", b"."),
        ("0.pyd", b"."),
        ("0.cls", b"3"),
        header("0.2.png", tarfile.DIRTYPE),
        ("0.txt", b"fine"),
        *[("1.jpg", b"x"), header("1.0.png", tarfile.FIFOTYPE), header("1.1.png", tarfile.CHRTYPE), ("1.txt", b"no")],
        ("../2.jpg", b"x"),
        ("/2.txt", b"absolute"),
        ("a/../../3.txt", b"outside"),
    ]
    row, *others = read(source("img2dataset", file=str(write_tar(tmp_path / "0.tar", members))))
    assert row == Row({"caption": "fine"}, (b"x",))
    names = ["../2.jpg", "/2.txt", "a/../../3.txt"]
    assert others == [
        Refusal("not a regular file", "1.0.png"),
        *(Refusal("unsafe name", name) for name in names),
        *(Ignored(kind, 1) for kind in ("pkl", "pickle", "pyd", "cls")),
    ]
    assert places(others[1:4]) == [f"0.tar, member '{name}'" for name in names]


def test_the_first_of_two_members_of_one_name_is_used_and_the_other_refused(tmp_path: Path) -> None:
    members = [("1.jpg", b"x"), ("1.JPG", b"y"), ("1.txt", b"words")]
    found = read(source("img2dataset", file=str(write_tar(tmp_path / "0.tar", members))))
    assert found == [Row({"caption": "words"}, (b"x",)), Refusal("duplicate member", "1.JPG")]


def test_a_sample_without_image_or_text_says_what_there_is(tmp_path: Path) -> None:
    members = [("s0.input.jpg", b"x"), ("s0.outputs.txt", b"words")]
    found = read(source("img2dataset", file=str(write_tar(tmp_path / "0.tar", members))))
    rest = "the members of a sample have the same name up to their suffix"
    assert found == [
        Refusal("no caption", f"only s0.input.jpg; {rest}"),
        Refusal("missing image", f"only s0.outputs.txt; {rest}"),
    ]


def test_tars_that_were_put_together_are_read_to_their_end(tmp_path: Path) -> None:
    parts = [write_tar(tmp_path / f"{key}.tar", [(f"{key}.gif", b"x"), (f"{key}.txt", key.encode())]) for key in "ab"]
    (tmp_path / "ab.tar").write_bytes(b"".join(part.read_bytes() for part in parts))
    found = read(source("img2dataset", file=str(tmp_path / "ab.tar")))
    assert found == [Row({"caption": "a"}, (b"x",)), Row({"caption": "b"}, (b"x",)), Ignored("(end mark)", 1)]


def test_members_are_capped_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(img2dataset, "MAX_IMAGE_BYTES", 10)
    monkeypatch.setattr(scan, "MAX_BYTES", 10)
    monkeypatch.setattr(scan, "MAX_TEXT_BYTES", 20)
    members = [
        *[("0.jpg", b"x" * 5), ("0.txt", b"fine")],
        *[("1.jpg", b"x" * 11), ("1.txt", b"words")],
        *[("2.0.jpg", b"x" * 6), ("2.1.jpg", b"x" * 6), ("2.txt", b"words")],
        *[("3.jpg", b"x"), ("3.json", dumped(caption="words " * 9))],
    ]
    found = read(source("img2dataset", file=str(write_tar(tmp_path / "0.tar", members))))
    assert reasons(found) == ["", "too large", "image too large", "too large"]


MEMBERS = [
    (f"{key}.{suffix}", content) for key in "0123" for suffix, content in (("jpg", PNG * 140), ("txt", b"words"))
]
BLOCKS = 1 + 5 + 1 + 1
"""Of 512 bytes per sample: a header and the image, a header and the text."""


@pytest.mark.parametrize("blocks", range(1, 4 * BLOCKS + 1))
@pytest.mark.parametrize("more", [0, 100])
def test_a_tar_that_is_cut_short_gives_what_is_whole(tmp_path: Path, blocks: int, more: int) -> None:
    path = write_tar(tmp_path / "0.tar", MEMBERS)
    whole = read(source("img2dataset", file=str(path)))
    assert reasons(whole) == [""] * 4
    path.write_bytes(path.read_bytes()[: blocks * 512 + more])
    found = read(source("img2dataset", file=str(path)))
    assert reasons(found)[-1:] == ["cut short"]
    assert found[:-1] == whole[: len(found) - 1]
    # The last sample may miss members that were cut off, so it goes too, even where it looks whole.
    assert len(found) - 1 >= (blocks - 1) // BLOCKS


def test_a_damaged_header_ends_a_tar(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", MEMBERS)
    content = bytearray(path.read_bytes())
    content[2 * BLOCKS * 512 + 130] ^= 0xFF
    path.write_bytes(content)
    *_, found = read(source("img2dataset", file=str(path)))
    assert found == Refusal("damaged", f"at byte {2 * BLOCKS * 512} of {len(content)}")


def test_a_header_of_negative_size_does_not_go_round_in_circles(tmp_path: Path) -> None:
    evil = tarfile.TarInfo("1.jpg")
    evil.size = -512
    blocks = [tarfile.TarInfo("0.txt").tobuf(), evil.tobuf(tarfile.GNU_FORMAT)]
    (tmp_path / "0.tar").write_bytes(b"".join(blocks) + bytes(1024))
    assert reasons(read(source("img2dataset", file=str(tmp_path / "0.tar")))) == ["damaged"]


def test_what_is_no_tar_is_told(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", MEMBERS)
    with pytest.raises(DataError, match=r"no file .*1\.tar; did you mean '.*0\.tar'"):
        list(source("img2dataset", file=str(tmp_path / "1.tar")).chunks())
    with tarfile.open(tmp_path / "1.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("0.txt"), io.BytesIO())
    for content in (b"", b"words" * 300, (tmp_path / "1.tar").read_bytes()):
        (tmp_path / "1.tar").write_bytes(content)
        with pytest.raises(DataError, match=r"1\.tar cannot be read as an uncompressed tar"):
            list(source("img2dataset", file=str(tmp_path / "1.tar")).chunks())
        found = read(source("img2dataset", file=str(tmp_path / "*.tar")))
        assert reasons(found) == ["", "", "", "", "unreadable file"]
        assert places(found) == [*(f"0.tar, sample '{key}'" for key in range(4)), "1.tar"]
