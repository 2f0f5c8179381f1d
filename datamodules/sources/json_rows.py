"""Rows of JSON arrays and JSON Lines of any size, found by their bytes and parsed one by one where they are needed.

The array is not parsed to find its rows: brackets are counted outside of strings, block by block. So a row that is no
valid JSON ends where its brackets do, and those after it are still found.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from datamodules.sources.base import Refusal
from datamodules.sources.files import MAX_ROW_BYTES, ROWS_PER_CHUNK, groups, open_file
from fvl_lightning.core.errors import DataError

BLOCK = 2**20
"""Bytes that are looked at in one go."""

Span = tuple[int, int, bool]
"""First byte of a row, the byte behind it, and whether its end was found."""

_REST_OF_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_STRING = rb'"' + _REST_OF_STRING.pattern + rb'"'
# What lies before the next byte that matters: in a row only brackets do, between rows commas too. A quote stops both
# where its string does not end in the block.
_WITHIN_ROW = re.compile(rb'(?:[^"\[\]{}]++|' + _STRING + rb")*+", re.DOTALL)
_BETWEEN_ROWS = re.compile(rb'(?:[^"\[\]{},]++|' + _STRING + rb")*+", re.DOTALL)


@dataclass(frozen=True)
class JsonChunk:
    """Consecutive rows of one file: the elements of an array, counted from 0, or lines, counted from 1."""

    path: str
    spans: tuple[Span, ...]
    unit: Literal["row", "line"]
    first: int


def check_json(path: Path) -> None:
    """DataError where a file can't be read, or holds neither an array nor objects."""
    first = _first_byte(path)
    if first not in (b"[", b"{", b""):
        raise DataError(f"{path} is neither a JSON array nor JSON Lines of objects: it begins with {first!r}")


def json_chunks(path: Path) -> Iterator[JsonChunk]:
    """The rows of a checked file in groups; nothing but one block is in memory."""
    is_array = _first_byte(path) == b"["
    spans = _array_spans(path) if is_array else _line_spans(path)
    first = 0 if is_array else 1
    for group in groups(spans, ROWS_PER_CHUNK):
        yield JsonChunk(str(path), group, "row" if is_array else "line", first)
        first += len(group)


def json_rows(chunk: JsonChunk) -> Iterator[tuple[str, dict[str, Any] | Refusal]]:
    """The objects of a chunk, in order, each behind where it is; what is blank between them is passed over."""
    with open_file(chunk.path) as file:
        for number, (start, stop, whole) in enumerate(chunk.spans, chunk.first):
            where = f"{Path(chunk.path).name}, {chunk.unit} {number}"
            if not whole:
                yield where, Refusal("cut short", f"byte {start}: the array ends before this row does")
            elif stop - start > MAX_ROW_BYTES:
                yield where, Refusal("row too large", f"{stop - start} bytes, at most {MAX_ROW_BYTES} are read")
            else:
                file.seek(start)
                text = file.read(stop - start)
                if text.strip():
                    yield where, _parse(text, f"byte {start}")


def _parse(text: bytes, place: str) -> dict[str, Any] | Refusal:
    try:
        row = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return Refusal("bad JSON", f"{place}: {error}")
    if not isinstance(row, dict):
        return Refusal("bad JSON", f"{place}: expected an object, found {type(row).__name__}")
    return row


def _first_byte(path: Path) -> bytes:
    for _, block in _blocks(path):
        if start := block.removeprefix(b"\xef\xbb\xbf").lstrip():
            return start[:1]
    return b""


def _blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    """The offset and the bytes of each block."""
    offset = 0
    with open_file(path) as file:
        while block := file.read(BLOCK):
            yield offset, block
            offset += len(block)


def _line_spans(path: Path) -> Iterator[Span]:
    start = end = 0
    for offset, block in _blocks(path):
        at = -1
        while (at := block.find(b"\n", at + 1)) >= 0:
            yield start, offset + at, True
            start = offset + at + 1
        end = offset + len(block)
    if start < end:
        yield start, end, True


def _array_spans(path: Path) -> Iterator[Span]:
    """What lies between the commas of the outermost array, and what follows it, which is blank if all is well."""
    depth = start = end = 0
    in_string = escaped = False
    for offset, block in _blocks(path):
        at, end = 0, offset + len(block)
        while at < len(block):
            if in_string:
                at, in_string, escaped = _string_end(block, at, escaped)
                continue
            skipped = (_WITHIN_ROW if depth > 1 else _BETWEEN_ROWS).match(block, at)
            assert skipped is not None, "both patterns match nothing, too"
            at = skipped.end()
            byte = block[at : at + 1]
            at += 1
            if byte == b'"':
                in_string = True
            elif byte in (b"[", b"{"):
                depth += 1
                start = offset + at if depth == 1 else start
            elif byte == b",":
                yield start, offset + at - 1, True
                start = offset + at
            elif byte and depth > 1:
                depth -= 1
            elif byte == b"]":
                yield start, offset + at - 1, True
                yield offset + at, path.stat().st_size, True
                return
    yield start, end, False


def _string_end(block: bytes, at: int, escaped: bool) -> tuple[int, bool, bool]:
    """For a string that began in an earlier block: where to go on, and whether in it still, behind a backslash."""
    rest = _REST_OF_STRING.match(block, at + escaped)
    assert rest is not None, "the pattern matches nothing, too"
    stop = block[rest.end() : rest.end() + 1]
    return rest.end() + 1, stop != b'"', stop == b"\\"
