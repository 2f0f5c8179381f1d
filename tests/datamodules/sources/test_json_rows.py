"""Rows of JSON files are found by their bytes, for any size of block, and a broken one costs no other."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamodules.sources import json_rows
from datamodules.sources.base import Refusal
from datamodules.sources.json_rows import check_json, json_chunks
from fvl_lightning.core.errors import DataError
from tests.datamodules.sources.reading import reasons, write_array, write_lines


def parse(path: Path) -> list[dict[str, Any] | Refusal]:
    return [row for chunk in json_chunks(path) for _, row in json_rows.json_rows(chunk)]


HARD = [
    {"text": 'quotes " and \\" and \\\\', "more": ["[", "]", {"}": "{"}]},
    {},
    {"backslashes": "\\" * 9, "comma": ",", "snowman": "☃ ü 漢"},
    {"deep": [[[[{"a": [1, 2, {"b": "],}"}]}]]]], "none": None, "number": -1.5e-3},
    {"": ""},
]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64, 2**20])
@pytest.mark.parametrize("how", [{}, {"indent": 2}, {"ensure_ascii": False, "separators": (",", ":")}])
def test_an_array_is_what_it_is_for_any_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, how: dict[str, Any]
) -> None:
    monkeypatch.setattr(json_rows, "BLOCK", block)
    assert parse(write_array(tmp_path / "rows.json", HARD, **how)) == HARD


@pytest.mark.parametrize("block", [1, 3, 2**20])
def test_lines_are_what_they_are_for_any_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(json_rows, "BLOCK", block)
    path = write_lines(tmp_path / "rows.jsonl", [*HARD[:2], "", "  ", *HARD[2:]])
    assert parse(path) == HARD
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n").rstrip())
    assert parse(path) == HARD


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(st.text(), values, max_size=3), max_size=4), block=st.integers(1, 40))
def test_any_objects_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]], block: int
) -> None:
    monkeypatch.setattr(json_rows, "BLOCK", block)
    assert parse(write_array(tmp_path / "rows.json", rows)) == rows
    assert parse(write_lines(tmp_path / "rows.jsonl", rows)) == rows


def test_a_byte_order_mark_is_no_part_of_a_row(tmp_path: Path) -> None:
    for text in ('[{"a": 1}]', '{"a": 1}\n'):
        (tmp_path / "rows.json").write_text(text, encoding="utf-8-sig")
        assert parse(tmp_path / "rows.json") == [{"a": 1}]


@pytest.mark.parametrize("text", ["", "\n \n", "[]", "[ ]\n", " [\n] "])
def test_no_rows_are_no_rows(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.json").write_text(text)
    assert parse(tmp_path / "rows.json") == []


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ('[{"a": 1}, {"a": tru}, {"a": 2}]', ["", "bad JSON", ""]),
        ('[{"a": 1}, 5, "text", [1], null, {"a": 2}]', ["", *["bad JSON"] * 4, ""]),
        ('[{"a": 1}, {"a": 1}}, {"a": 2}]', ["", "bad JSON", ""]),
        ('[{"a": 1,}, {"a": 2}]', ["bad JSON", ""]),
        ('[{"a": 1}, {"a": 2},]', ["", ""]),
        ('[{"a": 1}] [{"a": 2}]', ["", ""]),
        ('[{"a": 1}] rest [{"a": 2}] "end', ["", "bad JSON", "", "bad JSON"]),
        ('[{"a": 1, "a": 2}, {"a": 2}]', ["bad JSON", ""]),
        ('{"a": 1}\n{"a": \n{"a": 2}\n[]\nword\n{"a": 3}', ["", "bad JSON", "", "bad JSON", "bad JSON", ""]),
        ('[{"a": ' + "[" * 100_000 + "]" * 100_000 + '}, {"a": 2}]', ["bad JSON", ""]),
        ('[{"a": ' + "1" * 10_000 + '}, {"a": 2}]', ["bad JSON", ""]),
    ],
)
def test_a_broken_row_is_refused_and_the_rest_goes_on(tmp_path: Path, rows: str, expected: list[str]) -> None:
    (tmp_path / "rows.json").write_text(rows)
    assert reasons(parse(tmp_path / "rows.json")) == expected  # type: ignore[arg-type]


def test_bytes_that_are_no_text_cost_their_own_row_alone(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_bytes(b'[{"a": "\xff"}, {"a": 2}]')
    assert reasons(parse(tmp_path / "rows.json")) == ["bad JSON", ""]  # type: ignore[arg-type]


@pytest.mark.parametrize("cut", [1, 2, 5, 11, 12, 13, 20, 23])
def test_an_array_without_its_end_says_so(tmp_path: Path, cut: int) -> None:
    whole = '[{"a": 1}, {"a": 2, "b": "]"}]'
    (tmp_path / "rows.json").write_text(whole[:-cut])
    found = parse(tmp_path / "rows.json")
    complete = [{"a": 1}] if len(whole) - cut > 9 else []
    assert [*found[:-1], reasons(found)[-1]] == [*complete, "cut short"]  # type: ignore[arg-type]


def test_a_row_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "MAX_ROW_BYTES", 30)
    rows = [{"a": "x"}, {"a": "x" * 40}, {"a": "y"}]
    for path in (write_array(tmp_path / "rows.json", rows), write_lines(tmp_path / "rows.jsonl", rows)):
        assert reasons(parse(path)) == ["", "row too large", ""]  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["PK\x03\x04", "<html>", '"rows"', "id,image\n"])
def test_another_format_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(DataError, match=r"rows\.json is neither a JSON array nor JSON Lines"):
        check_json(tmp_path / "rows.json")


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_a_large_file_is_never_in_memory(tmp_path: Path, name: str) -> None:
    rows = ({"id": i, "text": "many words, [quite] many " * 400} for i in range(2000))
    text = [json.dumps(row) for row in rows]
    (tmp_path / name).write_text(f"[{','.join(text)}]" if name == "rows.json" else "\n".join(text))
    size = (tmp_path / name).stat().st_size
    del text
    tracemalloc.start()
    try:
        assert sum(1 for chunk in json_chunks(tmp_path / name) for _ in json_rows.json_rows(chunk)) == 2000
        assert tracemalloc.get_traced_memory()[1] < size / 3
    finally:
        tracemalloc.stop()
