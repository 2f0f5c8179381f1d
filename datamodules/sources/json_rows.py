"""Finds the rows of JSON files of any size by scanning their bytes, and parses rows one by one.

A file is JSON Lines if its first line is an object by itself. Any other file is read as a sequence of values, which may
be rows or arrays of rows, over any number of lines. Rows are found without parsing: brackets outside of strings are
counted, block by block. So an invalid row ends where its brackets end, and the rows after it are still found.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from datamodules.sources.base import Refusal
from datamodules.sources.row_files import MAX_ROW_BYTES, ROWS_PER_CHUNK, groups, open_file
from datamodules.sources.text_files import text_encoding
from fvl_lightning.core.errors import DataError

BLOCK = 2**20
"""Bytes that are scanned at once."""

Span = tuple[int, int, bool]
"""First byte of a row, the byte after it, and whether its end was found."""

_REST_OF_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_STRING = rb'"' + _REST_OF_STRING.pattern + rb'"'
# The bytes before the next significant one: a bracket within a row, or also a comma between rows. Both patterns stop at
# a quote whose string does not end in the block.
_WITHIN_ROW = re.compile(rb'(?:[^"\[\]{}]++|' + _STRING + rb")*+", re.DOTALL)
_BETWEEN_ROWS = re.compile(rb'(?:[^"\[\]{},]++|' + _STRING + rb")*+", re.DOTALL)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n," + _BYTE_ORDER_MARK
"""Bytes between values; concatenated files have byte order marks there."""


@dataclass(frozen=True)
class JsonChunk:
    """Consecutive rows of one file: values, counted from 0, or lines, counted from 1."""

    path: str
    spans: tuple[Span, ...]
    unit: Literal["row", "line"]
    first: int


def check_json(path: Path, fields: Collection[str] = ()) -> None:
    """Checks that a file contains JSON rows.

    Args:
        path: the file.
        fields: a row has at least one of them; empty where any object is a row.

    Raises:
        DataError: the file cannot be read, contains neither arrays nor objects, or a single object around the rows.
    """
    expected = "neither a JSON array nor JSON Lines of objects"
    try:
        encoding = text_encoding(path)
    except DataError as error:
        raise DataError(f"{path} is {expected}: {error}") from None
    if encoding != "utf-8-sig":
        raise DataError(
            f"{path} is {encoding.upper()}, JSON is read in UTF-8: iconv -f {encoding} -t utf-8 converts it"
        )
    first = _first_byte(path)
    if first not in (b"[", b"{", b""):
        raise DataError(f"{path} is {expected}: it begins with {first!r}")
    if first == b"{" and fields:
        _check_object(path, fields)


def json_chunks(path: Path) -> Iterator[JsonChunk]:
    """Yields the rows of a checked file in groups; only one block is in memory at a time."""
    are_lines = _are_lines(path)
    spans = _line_spans(path) if are_lines else _value_spans(_blocks(path))
    first = 1 if are_lines else 0
    for group in groups(spans, ROWS_PER_CHUNK):
        yield JsonChunk(str(path), group, "line" if are_lines else "row", first)
        first += len(group)


def json_rows(chunk: JsonChunk) -> Iterator[tuple[str, dict[str, Any] | Refusal]]:
    """Yields (place, object) for the rows of a chunk, in order; blanks between them are ignored."""
    with open_file(chunk.path) as file:
        for number, (start, stop, whole) in enumerate(chunk.spans, chunk.first):
            where = f"{Path(chunk.path).name}, {chunk.unit} {number}"
            if not whole:
                lost = f"{stop - start} bytes to the end of the file"
                yield where, Refusal("cut short", f"byte {start}: the file ends before this row does; it loses {lost}")
            elif stop - start > MAX_ROW_BYTES:
                yield where, Refusal("row too large", f"{stop - start} bytes, at most {MAX_ROW_BYTES} are read")
            else:
                file.seek(start)
                text = file.read(stop - start).strip(_BLANK)
                if text:
                    yield from ((where, row) for row in _parse(text, f"byte {start}"))


def parse_json(text: str) -> Any:
    """Parses one JSON value; ValueError for invalid JSON or duplicate field names, RecursionError for deep nesting."""
    return _DECODER.decode(text)


def _parse(text: bytes, place: str) -> Iterable[dict[str, Any] | Refusal]:
    """Returns the rows in a text, which may be objects or arrays of objects; one Refusal for anything else."""
    try:
        values = list(_values(text.decode()))
    except (ValueError, RecursionError) as error:
        return [Refusal("bad JSON", f"{place}: {error}")]
    rows: list[dict[str, Any] | Refusal] = []
    for value in values:
        # In concatenated files, lines or elements may be arrays of rows.
        inner = value if isinstance(value, list) and value else [value]
        if not all(isinstance(row, dict) for row in inner):
            found = f"{type(value).__name__} of {len(value)}" if isinstance(value, list) else type(value).__name__
            return [Refusal("bad JSON", f"{place}: expected an object, found {found}")]
        rows += inner
    return rows


def _values(text: str) -> Iterator[Any]:
    at = 0
    while at < len(text):
        value, at = _DECODER.raw_decode(text, at)
        yield value
        while at < len(text) and text[at] in " \t\r\n\ufeff":
            at += 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"two fields are named {next(name for name in names if names.count(name) > 1)!r}")
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _check_object(path: Path, fields: Collection[str]) -> None:
    """Raises DataError where a file only contains a single object that is not a row."""
    expected = "rows are expected as a JSON array, or as objects one after another"
    start, stop, whole = _first_value(path)
    if not whole:
        # The second line distinguishes JSON Lines from one object around all rows.
        second = next(islice(_line_spans(path), 1, None), None)
        if stop - start > MAX_ROW_BYTES and (second is None or not _is_object(path, second)):
            raise DataError(f"{path} begins with an object of more than {MAX_ROW_BYTES} bytes: {expected}")
        return
    with open_file(path) as file:
        file.seek(start)
        text = file.read(stop - start)
        alone = not file.read(BLOCK).strip(_BLANK)
    rows = list(_parse(text.strip(_BLANK), ""))
    row = rows[0] if alone and len(rows) == 1 else None
    if isinstance(row, dict) and not any(field in row for field in fields):
        names, wanted = ", ".join(map(repr, list(row)[:5])), " or ".join(map(repr, fields))
        raise DataError(f"{path} holds a single object, with {names or 'no fields'} and without {wanted}: {expected}")


def _are_lines(path: Path) -> bool:
    """Returns whether the file is JSON Lines: its first object is alone on the first line."""
    if _first_byte(path) != b"{":
        return False
    start, stop, whole = _first_value(path)
    if not whole:
        return True
    with open_file(path) as file:
        file.seek(start)
        text, rest = file.read(stop - start).strip(_BLANK), file.read(BLOCK)
    if b"\n" in text or b"\r" in text:
        return not _is_object(path, (start, stop, True))
    blank = len(rest) - len(rest.lstrip(b" \t\r"))
    return rest[blank : blank + 1] in (b"", b"\n") or rest[blank : blank + 1] not in b",{["


def _is_object(path: Path, span: Span) -> bool:
    start, stop, _ = span
    if stop - start > MAX_ROW_BYTES:
        return False
    with open_file(path) as file:
        file.seek(start)
        text = file.read(stop - start).strip(_BLANK)
    return any(isinstance(row, dict) for row in _parse(text, ""))


def _first_value(path: Path) -> Span:
    """Returns the span of a file's first object; its end is searched within the size limit of a row."""
    return next(_value_spans(islice(_blocks(path), MAX_ROW_BYTES // BLOCK + 2)))


def _first_byte(path: Path) -> bytes:
    for _, block in _blocks(path):
        if start := block.lstrip(b" \t\r\n" + _BYTE_ORDER_MARK):
            return start[:1]
    return b""


def _blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields the offset and the bytes of each block."""
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


def _value_spans(blocks: Iterable[tuple[int, bytes]]) -> Iterator[Span]:
    """Yields rows: elements of outermost arrays, objects outside of arrays, and any other text that is not blank."""
    depth = inside = start = end = 0  # `inside` is 1 in an outermost array, where rows begin at depth 1, else at 0
    in_string = escaped = False
    blank = True
    for offset, block in blocks:
        at, end = 0, offset + len(block)
        while at < len(block):
            if in_string:
                at, in_string, escaped = _string_end(block, at, escaped)
                continue
            skipped = (_WITHIN_ROW if depth > inside else _BETWEEN_ROWS).match(block, at)
            assert skipped is not None, "both patterns match the empty string"
            if not inside and depth == 0:
                blank = blank and not skipped[0].strip(_BLANK)
            at = skipped.end()
            byte, here = block[at : at + 1], offset + at
            at += 1
            if byte == b'"':
                in_string = True
                blank = blank and depth > 0
            elif byte in (b"[", b"{"):
                if depth == 0:
                    if not blank:
                        yield start, here, True
                    inside, blank = int(byte == b"["), True
                    start = here + inside
                depth += 1
            elif byte and depth > inside:
                depth -= 1
                if depth == 0:
                    yield start, here + 1, True
                    start = here + 1
            elif byte == b"," and inside:
                yield start, here, True
                start = here + 1
            elif byte == b"]" and inside:
                yield start, here, True
                start, depth, inside = here + 1, 0, 0
            elif byte and not inside and byte != b",":
                blank = False
    if depth:
        yield start, end, False
    elif not blank:
        yield start, end, True


def _string_end(block: bytes, at: int, escaped: bool) -> tuple[int, bool, bool]:
    """Continues a string from an earlier block; returns (next offset, still in the string, after a backslash)."""
    rest = _REST_OF_STRING.match(block, at + escaped)
    assert rest is not None, "the pattern matches the empty string"
    stop = block[rest.end() : rest.end() + 1]
    return rest.end() + 1, stop != b'"', stop == b"\\"
