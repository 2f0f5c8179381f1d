"""A file of JSON Lines grows by whole lines, whatever stops the process that writes it."""

import resource
from pathlib import Path

import pytest

from fvl_lightning.core.errors import DataError
from fvl_lightning.core.jsonl import append_rows, read_rows


def test_rows_come_back(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert list(read_rows(path)) == []
    rows = [{"a": 1, "b": [None, "größer\u2028\n"]}, {}, {"half": "\ud83d"}]
    append_rows(path, rows[:1])
    append_rows(path, rows[1:], durable=True)
    assert list(read_rows(path)) == rows
    assert path.read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("torn", [b'{"a', b'{"a": 2}', b"\xff", b"x" * 100_000])
@pytest.mark.parametrize("whole", [b"", b'{"a": 1}\n'])
def test_a_torn_last_line_is_not_read_and_goes_with_the_next_one(tmp_path: Path, whole: bytes, torn: bytes) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(whole + torn)
    assert len(list(read_rows(path))) == len(whole.splitlines())
    append_rows(path, [{"a": 3}])
    assert path.read_bytes() == whole + b'{"a": 3}\n'


@pytest.mark.parametrize("line", [b"{'a': 1}", b"[1]", b"1", b"", b'{"a": "\xff"}'])
def test_a_line_that_is_no_row(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"{}\n" + line + b"\n{}\n")
    with pytest.raises(DataError) as caught:
        list(read_rows(path))
    assert str(caught.value) == f"line 2 of {path} is not a JSON object"


def test_a_disk_that_is_full_takes_all_rows_or_none(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append_rows(path, [{"a": 1}])
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 12, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            append_rows(path, [{"a": 2}, {"a": 3}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
