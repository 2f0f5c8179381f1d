"""Image data sets in Parquet come out as they went in, in each of the layouts."""

import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules.sources.base import Ignored, Refusal, Row
from fvl_lightning.core.errors import ConfigError, DataError
from tests.datamodules.sources.conftest import SECRET
from tests.datamodules.sources.reading import places, read, reasons, source, talk

IMAGE = {"type": "image"}
HUB_IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
TALK = talk("<image>\nWhat?", "A dog.")["conversations"]
MESSAGES = [
    {"role": "user", "content": [IMAGE, {"type": "text", "text": "\nWhat?"}]},
    {"role": "assistant", "content": "A dog."},
]


def write(path: Path, rows: list[dict[str, Any]], images: pa.DataType | None = None, **how: Any) -> Path:
    table = pa.Table.from_pylist(rows)
    if images is not None:
        column = pa.array([row["images"] for row in rows], images)
        table = table.set_column(table.schema.get_field_index("images"), "images", column)
    pq.write_table(table, path, **how)
    return path


def hub(content: bytes | None, path: str | None = None) -> dict[str, Any]:
    return {"bytes": content, "path": path}


@pytest.mark.parametrize(
    ("column", "kind", "expected"),
    [
        (hub(b"x", "x.png"), HUB_IMAGE, (b"x",)),
        ([hub(b"x"), hub(b"y", "/etc/hostname")], pa.list_(HUB_IMAGE), (b"x", b"y")),
        (b"x", pa.binary(), (b"x",)),
        (b"x", pa.large_binary(), (b"x",)),
        ([b"x", b"y"], pa.list_(pa.binary()), (b"x", b"y")),
        ([b"x"], pa.large_list(pa.large_binary()), (b"x",)),
        ([], pa.list_(HUB_IMAGE), ()),
        (None, pa.list_(HUB_IMAGE), ()),
        (None, HUB_IMAGE, ()),
        (hub(None), HUB_IMAGE, ()),
        (hub(None, ""), HUB_IMAGE, ()),
        ([hub(None), None], pa.list_(HUB_IMAGE), ()),
    ],
)
def test_images_lie_in_a_column_of_any_kind(
    tmp_path: Path, column: Any, kind: pa.DataType, expected: tuple[bytes, ...]
) -> None:
    path = write(tmp_path / "0.parquet", [{"images": column, "caption": "A dog."}], kind)
    assert read(source("parquet", file=str(path), layout="caption")) == [Row({"caption": "A dog."}, expected)]


def test_conversations(tmp_path: Path) -> None:
    row = {"images": hub(b"x"), "conversations": TALK, "id": "7", "data_source": "web", "n": 3, "f": 0.5, "ok": True}
    path = write(
        tmp_path / "0.parquet", [{**row, "none": None, "list": [1], "raw": b"raw", "messages": "no"}], HUB_IMAGE
    )
    expected = {"id": "7", "data_source": "web", "n": 3, "f": 0.5, "ok": True, "messages": MESSAGES}
    found = read(source("parquet", file=str(path), layout="conversations"))
    assert found == [Row(expected, (b"x",)), Ignored("columns 'list'", 1), Ignored("columns 'raw'", 1)]
    assert found[0].unused == ("messages",)


def test_messages_with_plain_text(tmp_path: Path) -> None:
    rows = [
        {"images": [hub(b"x")], "chat": [{"role": "user", "content": "<image>\nWhat?"}, MESSAGES[1]]},
        {"images": [], "chat": [{"role": "system", "content": "Be brief."}]},
    ]
    path = write(tmp_path / "0.parquet", rows, pa.list_(HUB_IMAGE))
    assert read(source("parquet", file=str(path), layout="messages", text="chat")) == [
        Row({"messages": MESSAGES}, (b"x",)),
        Row({"messages": [{"role": "system", "content": "Be brief."}]}),
    ]


def parts(*kinds: str | int) -> list[dict[str, Any]]:
    """Parts as the hub stores them, each with all fields: a text, or the number of an image."""
    return [
        {"type": "text", "text": kind, "index": None}
        if isinstance(kind, str)
        else {"type": "image", "text": None, "index": kind}
        for kind in kinds
    ]


def test_messages_with_parts(tmp_path: Path) -> None:
    rows = [
        {
            "images": [hub(b"x"), hub(b"y")],
            "messages": [
                {"role": "user", "content": parts("Is ", 0, " like <image>", 1, "?")},
                {"role": "assistant", "content": parts("No.")},
            ],
        },
        {"images": [hub(b"x"), hub(b"y")], "messages": [{"role": "user", "content": parts(1, 1)}]},
        {"images": [hub(b"x")], "messages": [{"role": "user", "content": [{"type": "video", "text": "", "index": 0}]}]},
        {"images": [], "messages": [{"role": "user", "content": None}]},
    ]
    found = read(
        source("parquet", file=str(write(tmp_path / "0.parquet", rows, pa.list_(HUB_IMAGE))), layout="messages")
    )
    said = [{"type": "text", "text": "Is "}, IMAGE, {"type": "text", "text": " like <image>"}, IMAGE]
    assert found[0] == Row(
        {
            "messages": [
                {"role": "user", "content": [*said, {"type": "text", "text": "?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "No."}]},
            ]
        },
        (b"x", b"y"),
    )
    assert reasons(found) == ["", *["bad messages"] * 3]


def test_texts(tmp_path: Path) -> None:
    def turns(*words: str, source: str = "PDF") -> list[dict[str, str]]:
        return [{"user": words[i], "assistant": words[i + 1], "source": source} for i in range(0, len(words), 2)]

    rows = [
        {"images": [hub(b"x"), hub(b"y")], "texts": turns("What?", "A bill.", "How much?", "5 €")},
        {"images": None, "texts": turns("Hi", "Hello")},
        {"images": [hub(b"x")], "texts": []},
        {"images": [hub(b"x")], "texts": [{"user": None, "assistant": "Hello", "source": ""}]},
    ]
    found = read(source("parquet", file=str(write(tmp_path / "0.parquet", rows, pa.list_(HUB_IMAGE))), layout="texts"))
    assert found[:2] == [
        Row(
            {
                "source": "PDF",
                "messages": [
                    {"role": "user", "content": [IMAGE, IMAGE, {"type": "text", "text": "What?"}]},
                    {"role": "assistant", "content": "A bill."},
                    {"role": "user", "content": "How much?"},
                    {"role": "assistant", "content": "5 €"},
                ],
            },
            (b"x", b"y"),
        ),
        Row(
            {
                "source": "PDF",
                "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
            }
        ),
    ]
    assert reasons(found[2:]) == ["no messages", "bad messages"]


def test_captions_of_another_column_without_images(tmp_path: Path) -> None:
    path = write(tmp_path / "0.parquet", [{"text": " A dog.", "caption": "other"}, {"text": None, "caption": "other"}])
    found = read(source("parquet", file=str(path), layout="caption", text="text", images=None))
    assert found == [Row({"caption": " A dog."}), Refusal("no caption")]


@pytest.mark.parametrize(
    ("image", "kind", "reason"),
    [
        (hub(None, "{}/outside.png"), HUB_IMAGE, "missing image"),
        ([hub(b"x"), hub(None)], pa.list_(HUB_IMAGE), "missing image"),
        ([hub(b"x"), None], pa.list_(HUB_IMAGE), "missing image"),
        ("{}/outside.png", pa.string(), "bad image"),
    ],
)
def test_a_path_without_bytes_is_never_followed(
    tmp_path: Path, images: Path, image: Any, kind: pa.DataType, reason: str
) -> None:
    column = {**image, "path": image["path"].format(tmp_path)} if isinstance(image, dict) else image
    column = column.format(tmp_path) if isinstance(column, str) else column
    path = write(tmp_path / "0.parquet", [{"images": column, "caption": "A dog."}], kind)
    found = read(source("parquet", file=str(path), layout="caption"))
    assert reasons(found) == [reason]
    assert SECRET not in repr(found).encode()


def test_every_row_group_is_a_chunk(tmp_path: Path) -> None:
    rows = [{"images": str(i).encode(), "caption": str(i)} for i in range(100)]
    write(tmp_path / "b.parquet", rows[90:])
    write(tmp_path / "a.parquet", rows[:90], row_group_size=40)
    one = source("parquet", file=str(tmp_path / "*.parquet"), layout="caption")
    assert len(list(one.chunks())) == 4
    assert read(one) == [Row({"caption": str(i)}, (str(i).encode(),)) for i in range(100)]


def test_rows_of_a_group_are_in_memory_a_few_at_a_time(tmp_path: Path) -> None:
    rows = [{"images": i.to_bytes(2, "big") * 50_000, "caption": "A dog."} for i in range(400)]
    path = write(tmp_path / "0.parquet", rows, use_dictionary=False, compression="none", write_batch_size=4)
    del rows
    one = source("parquet", file=str(path), layout="caption")
    (chunk,) = one.chunks()
    before = pa.total_allocated_bytes()
    most = 0
    for _ in one.rows(chunk):
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < path.stat().st_size / 2


def test_bytes_that_are_no_text_cost_their_own_row_alone(tmp_path: Path) -> None:
    captions = pa.array([b"one", b"\xff", b"two"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"images": pa.array([b"x"] * 3), "caption": captions}), tmp_path / "0.parquet")
    found = read(source("parquet", file=str(tmp_path / "0.parquet"), layout="caption"))
    assert reasons(found) == ["", "bad row", ""]


def test_a_damaged_group_is_one_refusal(tmp_path: Path) -> None:
    rows = [{"images": bytes([i]) * 1000, "caption": str(i)} for i in range(90)]
    path = write(tmp_path / "0.parquet", rows, row_group_size=30, compression="zstd", use_dictionary=False)
    place = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[place : place + 60] = b"\xff" * 60
    path.write_bytes(content)
    found = read(source("parquet", file=str(path), layout="caption"))
    assert reasons(found) == [*[""] * 30, "unreadable rows", *[""] * 30]
    assert places(found) == [f"0.parquet, row {i}" for i in (*range(31), *range(60, 90))]


def test_a_file_that_is_cut_costs_no_other(tmp_path: Path) -> None:
    rows = [{"images": b"x", "caption": "A dog."}]
    for name in ("0.parquet", "1.parquet"):
        write(tmp_path / name, rows)
    (tmp_path / "0.parquet").write_bytes((tmp_path / "0.parquet").read_bytes()[:-9])
    found = read(source("parquet", file=str(tmp_path / "*.parquet"), layout="caption"))
    assert reasons(found) == ["unreadable file", ""]
    assert places(found) == ["0.parquet", "1.parquet, row 0"]


def test_images_are_capped_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.sources.image_files.MAX_IMAGE_BYTES", 10)
    rows = [{"images": [b"x" * 5] * n, "caption": "A dog."} for n in (2, 3)]
    path = write(tmp_path / "0.parquet", rows)
    assert reasons(read(source("parquet", file=str(path), layout="caption"))) == ["", "image too large"]


def test_what_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "0.parquet", [{"image": b"x", "captions": "A dog."}])
    with pytest.raises(DataError, match="no column 'images', there are image, captions; did you mean 'image'"):
        list(source("parquet", file=str(path), layout="caption").chunks())
    with pytest.raises(DataError, match=r"no column 'caption', .*; did you mean 'captions'"):
        list(source("parquet", file=str(path), layout="caption", images="image").chunks())
    with pytest.raises(DataError, match=r"no file .*1\.parquet; did you mean"):
        list(source("parquet", file=str(tmp_path / "1.parquet"), layout="caption").chunks())
    with pytest.raises(ConfigError, match=r"unknown value 'text', .*did you mean 'texts'"):
        source("parquet", file=str(path), layout="text")
    path.write_bytes(b"PAR1 and nothing")
    with pytest.raises(DataError, match=r"0\.parquet cannot be read as Parquet"):
        list(source("parquet", file=str(path), layout="caption").chunks())
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match="needs the package pyarrow"):
        list(source("parquet", file=str(path), layout="caption").chunks())


def test_the_layout_is_that_of_the_only_column_with_such_a_name(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{"image": b"x", "conversations": TALK}]), tmp_path / "0.parquet")
    assert read(source("parquet", file=str(tmp_path / "0.parquet"))) == [Row({"messages": MESSAGES}, (b"x",))]
    pq.write_table(
        pa.Table.from_pylist([{"images": b"x", "caption": "A dog.", "texts": "A dog."}]), tmp_path / "1.parquet"
    )
    with pytest.raises(DataError, match=r"there are columns texts and caption; choose one as source\.layout"):
        source("parquet", file=str(tmp_path / "1.parquet")).chunks()
    pq.write_table(pa.Table.from_pylist([{"images": b"x", "prompt": "A dog."}]), tmp_path / "2.parquet")
    with pytest.raises(DataError, match=r"no column is named messages, .*\(there are images, prompt\)"):
        source("parquet", file=str(tmp_path / "2.parquet")).chunks()
    with pytest.raises(ConfigError, match="layout: name that of the column 'prompt'"):
        source("parquet", file=str(tmp_path / "2.parquet"), text="prompt")


def test_kinds_and_captions_come_from_the_row(tmp_path: Path) -> None:
    """The kind is that of every answer; a row whose images are not exactly one cannot be scored, and has none."""
    turns = [{"user": "What?", "assistant": "A dog."}, {"user": "And?", "assistant": "A cat."}]
    rows = [{"images": [hub(b"x")] * count, "texts": turns, "task": "animals"} for count in (1, 2)]
    path = write(tmp_path / "0.parquet", rows, pa.list_(HUB_IMAGE))
    one, two = read(source("parquet", file=str(path), layout="texts", kinds="task", answer_as_caption=True))
    assert (one.record["kinds"], one.record["caption"], one.record["task"]) == (["animals"] * 2, "A dog.", "animals")
    assert "kinds" not in two.record
    with pytest.raises(DataError, match=r"no column 'tasks'.*did you mean 'task'"):
        source("parquet", file=str(path), layout="texts", kinds="tasks").chunks()


def test_the_first_rows_of_local_files(tmp_path: Path) -> None:
    for name, count in (("a", 5), ("b", 3), ("c", 2)):
        rows = [{"images": b"x", "caption": f"{name}{number}"} for number in range(count)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet", row_group_size=2)
    found = read(source("parquet", file=str(tmp_path / "*.parquet"), layout="caption", max_rows=6))
    assert [row.record["caption"] for row in found if isinstance(row, Row)] == ["a0", "a1", "a2", "a3", "a4", "b0"]
    beyond = [Ignored("rows beyond source.max_rows", count) for count in (1, 1)]
    assert [row for row in found if isinstance(row, Ignored)] == [*beyond, Ignored("files beyond source.max_rows", 1)]
