"""Tables keep their rows apart and their letters as they are, whatever wrote them."""

import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from datamodules.sources.base import Refusal
from datamodules.sources.tables import table_columns, table_rows
from fvl_lightning.core.errors import DataError
from tests.datamodules.sources.reading import places, read, reasons, source, talk


def rows_of(path: Path, content: bytes | str, image: str = "image") -> list[Any]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [row for _, row in table_rows(path, image)]


def captions(rows: list[Any]) -> list[str]:
    return [f"({row.reason})" if isinstance(row, Refusal) else row["caption"] for row in rows]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (['a.png,"open', "b.png,two", "c.png,three"], ["(bad row)", "two", "three"]),
        (['a.png,"open', 'b.png,"two"', "c.png,three"], ["(bad row)", "two", "three"]),
        (['a.png,"open', 'b.png,two"', "c.png,three"], ["(bad row)", "(bad row)", "three"]),
        (['a.png,"Stop" sign', "b.png,two"], ["(bad row)", "two"]),
        (['a.png,Pipe of 5" width', 'b.png,A "blue" wall'], ['Pipe of 5" width', 'A "blue" wall']),
        (['a.png,"two', 'lines, and ""more"""', "b.png,two"], ['two\nlines, and "more"', "two"]),
        (["a.png,one", 'b.png,"cut'], ["one", "(bad row)"]),
        (['a.png,"cut in the', "middle of a", "cell"], ["(bad row)"]),
        (["a.png,one,", "b.png", "", "c.png,three"], ["(bad row)", "(bad row)", "three"]),
        (["1,x", '2,"open', "3,three"], ["x", "(bad row)", "three"]),
    ],
)
def test_csv(tmp_path: Path, lines: list[str], expected: list[str]) -> None:
    for end in ("\n", "\r\n", "\r"):
        made = captions(rows_of(tmp_path / "rows.csv", end.join(["image,caption", *lines])))
        assert [text.replace(end, "\n") for text in made] == expected


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (['a.png\t"Stop" sign', 'b.png\t"Go, it says', "c.png\tthree"], ['"Stop" sign', '"Go, it says', "three"]),
        (['a.png\t"Stop"', "b.png\ttwo"], ['"Stop"', "two"]),
        (['a.png\t"a\tb"', 'b.png\t"say ""a"""'], ["a\tb", 'say "a"']),
        (['a.png\t"a\tb"', 'b.png\t"two', 'lines"', 'c.png\t"open'], ["a\tb", "two\nlines", "(bad row)"]),
        (['a.png\t"open', 'b.png\tclosed"', "c.png\tthree"], ['"open', 'closed"', "three"]),
    ],
)
def test_tsv_is_quoted_only_where_it_needs_it(tmp_path: Path, lines: list[str], expected: list[str]) -> None:
    assert captions(rows_of(tmp_path / "rows.tsv", "\n".join(["image\tcaption", *lines]))) == expected


def test_tsv_with_quoted_column_names_is_quoted(tmp_path: Path) -> None:
    assert captions(rows_of(tmp_path / "rows.tsv", '"image"\t"caption"\n"a.png"\t"Stop"\n')) == ["Stop"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    content = "image,caption\r\na.png,a ☃ wall\r\n".encode(encoding)
    assert captions(rows_of(tmp_path / "rows.csv", content)) == ["a ☃ wall"]


def test_utf_16_that_breaks_off_is_one_refusal(tmp_path: Path) -> None:
    lines = ["image,caption", *(f"a.png,{'x' * 100}{i}" for i in range(1000))]
    found = rows_of(tmp_path / "rows.csv", "\n".join(lines).encode("utf-16")[:-1])
    assert [row.reason for row in found if isinstance(row, Refusal)] == ["unreadable rows"]


def test_cells_may_be_as_large_as_a_row(tmp_path: Path) -> None:
    large, lines = "x" * 2**24, "\n".join(["word " * 40] * 90_000)
    found = rows_of(tmp_path / "rows.csv", f'image,caption\na.png,"{large[100:]}"\nb.png,{large}\nc.png,three\n')
    assert [len(found[0]["caption"]), found[1].reason, found[2]["caption"]] == [2**24 - 100, "row too large", "three"]
    found = rows_of(tmp_path / "rows.csv", f'image,caption\na.png,"{lines}"\nb.png,two\n')
    assert captions(found) == ["(row too large)", "two"]


def test_columns_of_one_name_are_kept_apart(tmp_path: Path, images: Path) -> None:
    path = tmp_path / "rows.csv"
    assert rows_of(path, "image,caption,n,n,,\na.png,one,1,2,,\n") == [
        {"image": "a.png", "caption": "one", "n": "1", "n.1": "2"}
    ]
    path.write_text("image,caption,caption\na.png,one,two\n")
    with pytest.raises(DataError, match="two columns are named 'caption'"):
        read(source("pairs", file=str(path), images=str(images)))


def packed(text: str, kind: str) -> bytes:
    if kind == "gzip":
        return gzip.compress(text.encode())
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("rows", text)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["gzip", "zip"])
def test_compressed_files_are_named_as_what_they_are(tmp_path: Path, images: Path, kind: str) -> None:
    for name, text in (("rows.csv", "image,caption\n"), ("rows.jsonl", "{}\n")):
        (tmp_path / name).write_bytes(packed(text, kind))
        with pytest.raises(DataError, match=rf"rows\.\w+ is no text: it is .*{kind}"):
            read(source("pairs", file=str(tmp_path / name), images=str(images)))
    with pytest.raises(DataError, match="is no text"):
        table_columns(tmp_path / "rows.csv")


@pytest.mark.parametrize("indent", [None, 2])
def test_one_object_around_the_rows_is_told(tmp_path: Path, images: Path, indent: int | None) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"info": {}, "data": [talk("Hi", "Hello")]}, indent=indent))
    with pytest.raises(DataError, match="a single object, with 'info', 'data' and without 'conversations'"):
        read(source("llava_json", file=str(path), images=str(images)))
    path.write_text(json.dumps(talk("Hi", "Hello"), indent=indent))
    found = read(source("llava_json", file=str(path), images=str(images)))
    assert (reasons(found), len(places(found))) == ([""], 1)


def test_json_in_utf_16_is_told(tmp_path: Path, images: Path) -> None:
    (tmp_path / "rows.json").write_bytes(json.dumps([talk("Hi", "Hello")]).encode("utf-16"))
    with pytest.raises(DataError, match=r"rows\.json is UTF-16, JSON is read in UTF-8"):
        read(source("llava_json", file=str(tmp_path / "rows.json"), images=str(images)))
