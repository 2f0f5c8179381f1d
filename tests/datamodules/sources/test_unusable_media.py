"""A row is not taught as if it had no media where they stand in another field."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules.sources.base import Refusal, Row
from datamodules.sources.refusals import Refused
from datamodules.sources.unusable_media import check_media
from tests.datamodules.sources.reading import PNG, read, reasons, source, talk, write_array

VIDEO = "field 'video' holds video or audio, which cannot be used"


@pytest.mark.parametrize(
    "row",
    [
        {"video": "a"},
        {"videos": ["a", "b"]},
        {"audio": {"bytes": b"x", "path": None}},
        {"clip": "films/a.MP4"},
        {"frames": ["a.webm"]},
        {"image_path": "a.jpg"},
        {"more": [{"path": "a b.png"}]},
        {"image": {"url": "https://host/a.jpeg"}},
        {"picture": {"bytes": b"x"}},
        {"pictures": [b"x", b"y"]},
    ],
)
def test_media_that_are_not_read(row: dict[str, Any]) -> None:
    with pytest.raises(Refused) as caught:
        check_media(row, has_images=False)
    assert caught.value.refusal.reason == "unused media"
    assert f"field '{next(iter(row))}'" in caught.value.refusal.detail


@pytest.mark.parametrize(
    "row",
    [
        {"video": None, "videos": [], "audio": "", "video_path": "None", "audios": [{"path": None}]},
        {"video": False, "source": "ocr_vqa", "text": "see a.png\nand b.png", "n": 3, "sizes": [[1, 2]]},
    ],
)
def test_fields_that_hold_no_media(row: dict[str, Any]) -> None:
    check_media(row, has_images=False)


def test_a_picture_in_another_field_is_metadata_beside_one_that_is_read() -> None:
    check_media({"image": "a.png", "original": "b.png"}, has_images=True)
    with pytest.raises(Refused):
        check_media({"image": "a.png", "clip": "b.mp4"}, has_images=True)


def test_llava_reads_images_where_image_is_empty(tmp_path: Path, images: Path) -> None:
    rows = [
        talk("<image>\nWhat?", "A dog.", images=["a.png"]),
        talk("<image>\nWhat?", "A dog.", image="a.png", images=["a.png"]),
        talk("<image>\nWhat?", "A dog.", image="a.png", images=["c.png"]),
        talk("What?", "A dog.", picture="a.png"),
        talk("<image>\nWhat?", "A dog.", image="a.png", video="a.mp4"),
        talk("What?", "A dog.", images=[], boxes=[[1]], weight=None),
        {"conversations": [{"from": "human", "value": "What?", "image": "a.png"}, {"from": "gpt", "value": "A dog."}]},
        {"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A dog.", "weight": 0}]},
    ]
    path = write_array(tmp_path / "rows.json", rows)
    found = read(source("llava_json", file=str(path), images=str(images)))
    assert reasons(found) == ["", "", "bad image", "unused media", "unused media", "", "unused media", ""]
    assert [row.images for row in found[:2]] == [(PNG + b"a.png",)] * 2
    assert [found[5].unused, found[7].unused] == [("boxes",), ("conversations.weight",)]
    named = read(source("llava_json", file=str(path), images=str(images), image="picture"))
    assert reasons(named)[:4] == ["unused media"] * 3 + [""]
    assert named[3].images == (PNG + b"a.png",)


def test_parquet_names_columns_that_are_not_read(tmp_path: Path) -> None:
    rows = {
        "image": [b"x", None, None, b"x"],
        "caption": ["one", "two", "three", "four"],
        "image_path": [None, "a.png", None, "a.png"],
        "video": pa.array([None, None, None, b"x"], pa.binary()),
        "scores": pa.array([[1], [2], [3], [4]]),
        "empty": pa.array([None] * 4, pa.list_(pa.int64())),
    }
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    found = read(source("parquet", file=str(tmp_path / "rows.parquet"), layout="caption", images="image"))
    assert reasons(found[:4]) == ["", "unused media", "", "unused media"]
    assert found[3].detail == VIDEO
    assert [(one.kind, one.count) for one in found[4:]] == [("columns 'scores'", 4)]


@pytest.mark.parametrize("image", [{"image": {"bytes": b"x"}}, {"data": b"x"}, {"bytes": None, "path": "a.png"}])
def test_a_struct_that_holds_something_is_not_no_image(tmp_path: Path, image: dict[str, Any]) -> None:
    pq.write_table(pa.table({"image": [image], "caption": ["one"]}), tmp_path / "rows.parquet")
    found = read(source("parquet", file=str(tmp_path / "rows.parquet"), layout="caption", images="image"))
    assert reasons(found) == ["missing image"]


def test_parts_as_json_are_parts_and_their_other_fields_are_named(tmp_path: Path) -> None:
    part = {"type": "text", "text": "What?", "style": "bold", "index": 3}
    answers = ["A dog.", '[{"type": "car", "box": [1, 2]}]', '[{"type": "text"']
    said = [
        [{"role": "user", "content": json.dumps([part])}, {"role": "assistant", "content": text}] for text in answers
    ]
    pq.write_table(pa.table({"messages": said}), tmp_path / "rows.parquet")
    found = read(source("parquet", file=str(tmp_path / "rows.parquet"), layout="messages", images=None))
    assert [row.record["messages"][0]["content"] for row in found] == [[{"type": "text", "text": "What?"}]] * 3
    assert [row.record["messages"][1]["content"] for row in found] == answers
    assert [row.unused for row in found] == [("messages.content.style",)] * 3


def test_the_causes_of_a_conversation_that_is_none_are_told(tmp_path: Path) -> None:
    said = [None, "", "Hello", '"Hello"', "[]", "[1]", '{"from": ["human"], "value": []}']
    pq.write_table(pa.table({"conversations": pa.array(said, pa.string())}), tmp_path / "rows.parquet")
    found = read(source("parquet", file=str(tmp_path / "rows.parquet"), layout="conversations", images=None))
    assert reasons(found) == ["no messages"] * 5 + ["bad messages", "no messages"]
    assert all(isinstance(row, Refusal) and row.detail for row in found)


def test_a_group_that_breaks_off_says_how_many_rows_are_lost(tmp_path: Path) -> None:
    table = pa.table({"caption": [str(i) * 1000 for i in range(40)]})
    path = tmp_path / "rows.parquet"
    pq.write_table(table, path, row_group_size=20, compression="zstd", use_dictionary=False)
    place = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[place : place + 60] = b"\xff" * 60
    path.write_bytes(content)
    found = read(source("parquet", file=str(path), layout="caption", images=None))
    assert sum(row.rows if isinstance(row, Refusal) else 1 for row in found) == 40
    assert sum(isinstance(row, Row) for row in found) == 20


def test_columns_of_one_name_are_refused_where_they_are_read(tmp_path: Path) -> None:
    one = pa.array(["a"])
    table = pa.Table.from_arrays([one, one, one], names=["caption", "more", "more"])
    pq.write_table(table, tmp_path / "rows.parquet")
    found = read(source("parquet", file=str(tmp_path / "rows.parquet"), layout="caption", images=None))
    assert [row.record for row in found[:1]] == [{"caption": "a"}]
    assert [(one.kind, one.count) for one in found[1:]] == [("columns 'more'", 1)]
