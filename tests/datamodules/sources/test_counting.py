"""Every row of a file is used or refused: for generated files, against a count that their generator knows."""

import csv
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.sources.base import Ignored, Refusal, Row
from tests.datamodules.sources.reading import PNG, source, talk

QUICK = settings(max_examples=40, deadline=None, derandomize=True, database=None)

letters = st.text(st.sampled_from("ab \"',;\t\n\r[]{}\\☃é\x0b\x85\u2028"), min_size=1, max_size=12)
captions = letters.filter(lambda text: bool(text.strip()))
encodings = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])


def outcomes(kind: str, content: bytes, suffix: str, **fields: Any) -> list[Row | Refusal]:
    """What a source makes of one file beside a folder with the image a.png; what is passed over is left out."""
    with tempfile.TemporaryDirectory() as folder:
        path, images = Path(folder, f"rows{suffix}"), Path(folder, "images")
        path.write_bytes(content)
        images.mkdir()
        (images / "a.png").write_bytes(PNG)
        named = fields if kind == "parquet" else {"images": str(images), **fields}
        one = source(kind, file=str(path), **named)
        rows: list[Row | Refusal] = []
        for chunk in one.chunks():
            found = [chunk] if isinstance(chunk, Refusal) else list(one.rows(chunk))
            rows += [row for row in found if not isinstance(row, Ignored)]
        return rows


def texts(rows: list[Row | Refusal]) -> list[str]:
    return [row.record["caption"] for row in rows if isinstance(row, Row)]


def table(rows: list[list[str]], **how: Any) -> str:
    file = io.StringIO(newline="")
    csv.writer(file, **how).writerows(rows)
    return file.getvalue()


@QUICK
@given(
    rows=st.lists(captions, max_size=6),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=encodings,
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    last=st.booleans(),
)
def test_csv_comes_back_as_it_was_written(rows: list[str], end: str, encoding: str, quoting: Any, last: bool) -> None:
    # The line end of the file, where it is bare, ends a line; csv quotes a cell with it.
    rows = [text.rstrip("\r") or "a" for text in rows]
    written = [["image", "caption"], *(["a.png", text] for text in rows)]
    if last:
        written = [row[::-1] for row in written]
    content = table(written, lineterminator=end, quoting=quoting).encode(encoding)
    found = outcomes("pairs", content, ".csv")
    assert [row.reason for row in found if isinstance(row, Refusal)] == []
    assert texts(found) == rows


@QUICK
@given(rows=st.lists(captions.filter(lambda text: not set(text) & set("\t\n\r")), max_size=6), encoding=encodings)
def test_tsv_without_quoting_keeps_every_letter(rows: list[str], encoding: str) -> None:
    content = "image\tcaption\n" + "".join(f"a.png\t{text}\n" for text in rows)
    found = outcomes("pairs", content.encode(encoding), ".tsv")
    needed = [text for text in rows if text[0] == text[-1] == '"' and '""' in text[1:-1]]
    if not needed:
        assert texts(found) == rows
    assert len(found) >= len(rows)


@QUICK
@given(
    before=st.lists(captions, max_size=3),
    broken=st.sampled_from(['"open', '"Stop" sign', '"a, b', 'a"b"', '"']),
    after=st.lists(captions, max_size=3),
    suffix=st.sampled_from([".csv", ".tsv"]),
    last=st.booleans(),
)
def test_a_mark_that_is_never_closed_joins_no_rows(
    before: list[str], broken: str, after: list[str], suffix: str, last: bool
) -> None:
    delimiter = "," if suffix == ".csv" else "\t"

    def written(rows: list[str]) -> str:
        pairs = [[text, "a.png"] if last else ["a.png", text] for text in rows]
        return table(pairs, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)

    header = f"caption{delimiter}image\n" if last else f"image{delimiter}caption\n"
    line = f"{broken}{delimiter}a.png\n" if last else f"a.png{delimiter}{broken}\n"
    found = outcomes("pairs", (header + written(before) + line + written(after)).encode(), suffix)
    marked = {table([[text]], quoting=csv.QUOTE_ALL, lineterminator="") for text in (*before, *after)}
    assert len(found) >= len(before) + 1 + len(after)
    assert {text for text in texts(found) if "a.png" in text} == set()
    if suffix == ".csv":
        assert set(texts(found)) <= {*before, broken, *after} | marked


objects = st.dictionaries(st.sampled_from(["caption", "image", "n", "more"]), captions | st.integers(), max_size=3).map(
    lambda row: {**row, "id": 1}
)


@QUICK
@given(
    parts=st.lists(st.tuples(st.sampled_from(["array", "pretty", "objects", "lines"]), st.lists(objects, max_size=4))),
    between=st.sampled_from(["", "\n", "\r\n", " \ufeff\n"]),
)
def test_json_of_several_parts_has_the_rows_of_all(parts: list[tuple[str, list[dict[str, Any]]]], between: str) -> None:
    written = {
        "array": json.dumps,
        "pretty": lambda rows: json.dumps(rows, indent=1, ensure_ascii=False),
        "objects": lambda rows: "\n".join(json.dumps(row, indent=1) for row in rows),
        "lines": lambda rows: "".join(json.dumps(row) + "\n" for row in rows),
    }
    parts = [({"lines": "objects"}.get(form, form), rows) for form, rows in parts]
    content = between.join(written[form](rows) for form, rows in parts)
    found = outcomes("pairs", content.encode(), ".json", caption="id", image="id")
    assert len(found) == sum(len(rows) for _, rows in parts)
    assert all(row.reason == "no caption" for row in found if isinstance(row, Refusal))


@QUICK
@given(
    rows=st.lists(captions, min_size=1, max_size=8),
    at=st.integers(0, 7),
    damage=st.sampled_from(["cut", "trailing", "blank", "joined", "array", "twice", "nul", "bytes"]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_a_damaged_line_of_json_costs_no_other(rows: list[str], at: int, damage: str, end: str) -> None:
    lines = [json.dumps({"image": "a.png", "caption": text}).encode() for text in rows]
    at %= len(lines)
    damaged = {
        "cut": (lines[at][:-3], 0, 1),
        "trailing": (lines[at] + b" }", 0, 1),
        "blank": (b"  ", 0, 0),
        "joined": (lines[at] * 2, 2, 0),
        "array": (b"[" + lines[at] + b"," + lines[at] + b"]", 2, 0),
        "twice": (b'{"image": "a.png", "caption": "x", "caption": "y"}', 0, 1),
        "nul": (b"\0\0\0", 0, 1),
        "bytes": (b'{"image": "a.png", "caption": "\xff"}', 0, 1),
    }
    line, used, refused = damaged[damage]
    if at == 0 and damage in ("nul", "array"):
        return  # the first byte of a file says what it is
    found = outcomes("pairs", end.encode().join([*lines[:at], line, *lines[at + 1 :]]), ".jsonl")
    assert sum(isinstance(row, Row) for row in found) == len(rows) - 1 + used
    assert sum(isinstance(row, Refusal) for row in found) == refused


@QUICK
@given(rows=st.lists(captions, min_size=1, max_size=6), cut=st.integers(1, 40), indent=st.none() | st.integers(1, 2))
def test_an_array_that_is_cut_loses_no_row_in_silence(rows: list[str], cut: int, indent: int | None) -> None:
    whole = json.dumps([{"image": "a.png", "caption": text} for text in rows], indent=indent).encode()
    content = whole[: max(1, len(whole) - cut)]
    found = outcomes("pairs", content, ".json")
    assert texts(found) == rows[: len(found) - 1]
    assert isinstance(found[-1], Refusal)
    assert found[-1].reason == "cut short"


@QUICK
@given(
    rows=st.lists(st.tuples(captions | st.none(), st.booleans()), max_size=20),
    group=st.integers(1, 7),
    form=st.sampled_from(["list", "text", "lists", "map"]),
    more=st.sampled_from([None, "dictionary", "large", "binary", "list"]),
)
def test_every_row_of_parquet_is_used_or_refused(
    rows: list[tuple[str | None, bool]], group: int, form: str, more: str | None
) -> None:
    def said(text: str | None) -> Any:
        turns = None if text is None else talk("<image>\nWhat?", text)["conversations"]
        if turns is None or form == "list":
            return turns
        if form == "text":
            return json.dumps(turns)
        if form == "map":
            return [list(turn.items()) for turn in turns]
        return {name: [turn[name] for turn in turns] for name in ("from", "value")}

    turn = pa.struct({"from": pa.string(), "value": pa.string()})
    lists = pa.struct({"from": pa.list_(pa.string()), "value": pa.list_(pa.string())})
    kinds = {"list": pa.list_(turn), "text": pa.string(), "lists": lists}
    kinds["map"] = pa.list_(pa.map_(pa.string(), pa.string()))
    columns = {
        "image": pa.array(
            [{"bytes": b"x", "path": None} if shown else None for _, shown in rows],
            pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        ),
        "conversations": pa.array([said(text) for text, _ in rows], kinds[form]),
    }
    names = [str(number) for number in range(len(rows))]
    beside = {
        "dictionary": lambda: pa.array(names, pa.string()).dictionary_encode(),
        "large": lambda: pa.array(names, pa.large_string()),
        "binary": lambda: pa.array([name.encode() for name in names], pa.binary()),
        "list": lambda: pa.array([[name] for name in names], pa.list_(pa.string())),
    }
    if more is not None:
        columns["more"] = beside[more]()
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, row_group_size=group)
    found = outcomes("parquet", file.getvalue(), ".parquet", layout="conversations", images="image")
    used = [row for row in found if isinstance(row, Row)]
    assert len(found) == len(rows)
    assert [row.record["messages"][1]["content"] for row in used] == [text for text, _ in rows if text is not None]
    if more in ("dictionary", "large"):
        assert [row.record["more"] for row in used] == [
            names[i] for i, (text, _) in enumerate(rows) if text is not None
        ]
