"""Caption pairs of JSON and of tables come out as they went in."""

import csv
from pathlib import Path
from typing import Any

import pytest

from datamodules.sources.base import Refusal, Row
from fvl_lightning.core.errors import DataError
from tests.datamodules.sources.conftest import SECRET
from tests.datamodules.sources.reading import PNG, places, read, reasons, source, write_array, write_lines

ROWS = [
    {"image": "a.png", "caption": ' A dog, "sitting"\non a\tmat. ', "source": "web"},
    {"image": "sub/b.png", "caption": "☃ ü", "source": ""},
    {"image": "c.png", "caption": "<image>", "source": "web"},
]
EXPECTED = [Row({"source": row["source"], "caption": row["caption"]}, (PNG + row["image"].encode(),)) for row in ROWS]


def write_table(path: Path, rows: list[dict[str, Any]], encoding: str = "utf-8") -> Path:
    with path.open("w", encoding=encoding, newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        table.writeheader()
        table.writerows(rows)
    return path


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.CSV"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_tables_come_out_exactly(tmp_path: Path, images: Path, name: str, encoding: str) -> None:
    path = write_table(tmp_path / name, ROWS, encoding)
    assert read(source("pairs", file=str(path), images=str(images))) == EXPECTED


@pytest.mark.parametrize("write", [write_array, write_lines])
def test_json_comes_out_exactly(tmp_path: Path, images: Path, write: Any) -> None:
    path = write(tmp_path / "rows.json", ROWS)
    assert read(source("pairs", file=str(path), images=str(images))) == EXPECTED


def test_columns_have_the_names_of_the_recipe(tmp_path: Path, images: Path) -> None:
    rows = [{"caption": "not this one", "messages": "nor this", "text": "A dog.", "file": "a.png"}]
    expected = [Row({"caption": "A dog."}, (PNG + b"a.png",))]
    for path in (write_table(tmp_path / "rows.csv", rows), write_lines(tmp_path / "rows.jsonl", rows)):
        assert read(source("pairs", file=str(path), images=str(images), image="file", caption="text")) == expected


def test_several_images_of_one_caption(tmp_path: Path, images: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [{"image": ["c.png", "a.png"], "caption": "Both.", "n": 2}])
    expected = [Row({"n": 2, "caption": "Both."}, (PNG + b"c.png", PNG + b"a.png"))]
    assert read(source("pairs", file=str(path), images=str(images))) == expected


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"image": "a.png"}, "no caption"),
        ({"image": "a.png", "caption": " \n"}, "no caption"),
        ({"image": "a.png", "caption": ["A dog."]}, "no caption"),
        ({"caption": "A dog."}, "missing image"),
        ({"image": "", "caption": "A dog."}, "missing image"),
        ({"image": "d.png", "caption": "A dog."}, "missing image"),
        ({"image": "../outside.png", "caption": "A dog."}, "unsafe path"),
        ({"image": 3, "caption": "A dog."}, "bad image"),
        ('{"image": "a.png"', "bad JSON"),
    ],
)
def test_a_broken_row_is_refused_and_the_rest_goes_on(
    tmp_path: Path, images: Path, row: dict[str, Any] | str, reason: str
) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [ROWS[0], row, ROWS[1]])
    rows = read(source("pairs", file=str(path), images=str(images)))
    assert reasons(rows) == ["", reason, ""]
    assert SECRET not in repr(rows).encode()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"a.png", "bad row"),
        (b"a.png,A dog.,web,more", "bad row"),
        (b"a.png," + b"x" * (2**24 + 1) + b",web", "row too large"),
        (b"../outside.png,A dog.,web", "unsafe path"),
        (b"a.png,,web", "no caption"),
        (b"d.png,A dog.,web", "missing image"),
    ],
)
def test_a_broken_line_is_refused_and_the_rest_goes_on(tmp_path: Path, images: Path, line: bytes, reason: str) -> None:
    (tmp_path / "rows.csv").write_bytes(b"image,caption,source\na.png,one,web\n" + line + b"\n\nc.png,two,web\n")
    found = read(source("pairs", file=str(tmp_path / "rows.csv"), images=str(images)))
    assert reasons(found) == ["", reason, ""]
    assert places(found) == [f"rows.csv, line {line}" for line in (2, 3, 5)]


def test_every_row_says_where_it_is_and_a_refused_one_its_id(tmp_path: Path, images: Path) -> None:
    rows = [{"image": "a.png" if i != 131 else "d.png", "caption": "two\nlines", "id": f"n{i}"} for i in range(140)]
    for path, expected in (
        (write_table(tmp_path / "rows.csv", rows), [f"rows.csv, line {2 * i + 2}" for i in range(140)]),
        (write_lines(tmp_path / "rows.jsonl", rows), [f"rows.jsonl, line {i + 1}" for i in range(140)]),
        (write_array(tmp_path / "rows.json", rows), [f"rows.json, row {i}" for i in range(140)]),
    ):
        found = read(source("pairs", file=str(path), images=str(images)))
        assert places(found) == expected
        refused = found[131]
        assert isinstance(refused, Refusal)
        assert refused.id == "n131"


def test_a_file_that_cannot_be_read_costs_no_other(tmp_path: Path, images: Path) -> None:
    (tmp_path / "a.jsonl").write_text("words", encoding="utf-8")
    (tmp_path / "b.csv").write_bytes(b'"' + b"x" * 200_000)
    write_lines(tmp_path / "c.jsonl", ROWS[:1])
    names = [str(tmp_path / name) for name in ("a.jsonl", "b.csv", "c.jsonl")]
    assert reasons(read(source("pairs", file=names, images=str(images)))) == ["unreadable file", "unreadable file", ""]


def test_bytes_that_are_no_text_stay_recognisable(tmp_path: Path, images: Path) -> None:
    (tmp_path / "rows.tsv").write_bytes(b"image\tcaption\na.png\tcaf\xe9\n")
    rows = read(source("pairs", file=str(tmp_path / "rows.tsv"), images=str(images)))
    assert rows == [Row({"caption": "caf\udce9"}, (PNG + b"a.png",))]


def test_chunks_are_small(tmp_path: Path, images: Path) -> None:
    rows = [{"image": "a.png", "caption": f"number {i}"} for i in range(700)]
    one = source("pairs", file=str(write_table(tmp_path / "rows.csv", rows)), images=str(images))
    assert len(list(one.chunks())) > 2
    assert [row.record["caption"] for row in read(one)] == [row["caption"] for row in rows]


def test_what_is_missing_is_told(tmp_path: Path, images: Path) -> None:
    path = write_table(tmp_path / "rows.csv", ROWS)
    with pytest.raises(
        DataError, match="no column 'captions', there are image, caption, source; did you mean 'caption'"
    ):
        list(source("pairs", file=str(path), images=str(images), caption="captions").chunks())
    with pytest.raises(DataError, match=r"no file .*rows\.tsv"):
        list(source("pairs", file=str(tmp_path / "rows.tsv"), images=str(images)).chunks())
    path.write_bytes(b'"' + b"x" * 200_000)
    with pytest.raises(DataError, match="its first line cannot be read as column names"):
        list(source("pairs", file=str(path), images=str(images)).chunks())
    path.write_bytes(b"")
    assert read(source("pairs", file=str(path), images=str(images))) == []
