"""Reads the rows of CSV and TSV files of any size one by one; a broken row does not affect others.

CSV is quoted by RFC 4180. TSV has no quoting, but many programs write it like CSV. So a TSV is read as quoted if the
cells that need their quotation marks outnumber the rows with misplaced marks; otherwise a quotation mark is an ordinary
character. An unclosed mark must not join rows: where lines inside a cell look like rows, or the mark is misplaced, its
first line is refused and reading continues with the second.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datamodules.sources.base import Refusal
from datamodules.sources.row_files import MAX_ROW_BYTES
from datamodules.sources.text_files import Lines, TextLine
from fvl_lightning.core.errors import DataError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
"""Delimiter of cells by a file's suffix."""

_IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".jfif"}
"""Suffixes of image files, which show that a line inside a cell is a row."""

Cells = list[str]


def table_columns(path: Path) -> Cells:
    """Returns the column names in a table's first line that is not blank; none where there is no such line.

    A duplicate name gets a number (`name.1`).

    Raises:
        DataError: the file is no text, or its first line cannot be parsed.
    """
    with Lines(path) as lines:
        return _read_columns(path, lines)


def table_rows(path: Path, image: str) -> Iterator[tuple[str, dict[str, str] | Refusal]]:
    """Yields (place, row) for the rows of a table; blank lines are ignored.

    Args:
        path: the file.
        image: the column with the images' names, which distinguishes rows from lines inside a cell.
    """
    delimiter = _delimiter(path)
    columns = table_columns(path)
    place = columns.index(image) if image in columns else None
    quoted = delimiter == "," or _is_quoted(path, _Form(delimiter, True, len(columns), place))
    with Lines(path) as lines:
        _read_columns(path, lines)
        for record in _records(lines, _Form(delimiter, quoted, len(columns), place)):
            cells = record.cells
            if isinstance(cells, Refusal):
                yield f"{path.name}, line {record.line}", cells
            elif len(cells) != len(columns):
                refusal = Refusal("bad row", f"{len(cells)} cells for {len(columns)} columns")
                yield f"{path.name}, line {record.line}", refusal
            else:
                pairs = zip(columns, cells, strict=True)
                # Spreadsheets end every line with the delimiters of empty columns, which have no name either.
                yield f"{path.name}, line {record.line}", {name: cell for name, cell in pairs if name or cell}


@dataclass(frozen=True)
class _Form:
    """The form of a table: its delimiter, quoting, number of columns, and the index of the column of image names."""

    delimiter: str
    quoted: bool
    columns: int
    image: int | None

    def looks_like_a_row(self, line: str) -> bool:
        """Returns whether a line by itself has an image's file name in the column of image names."""
        if self.image is None:
            return False
        cells = line.split(self.delimiter)
        # The column is counted from both ends, since a caption may contain delimiters.
        places = (self.image, self.image - self.columns)
        near = [cells[place] for place in places if -len(cells) <= place < len(cells)]
        return any(os.path.splitext(cell.strip(' "'))[1].lower() in _IMAGES for cell in near)


@dataclass
class _Record:
    """A row.

    Attributes:
        line: the number of its first line.
        cells: its cells, or the Refusal of a broken row.
        needs_marks: whether a cell needs its quotation marks.
        bare: whether a cell without quotation marks around it contains one.
    """

    line: int
    cells: Cells | Refusal
    needs_marks: bool = False
    bare: bool = False


def _delimiter(path: Path) -> str:
    return DELIMITERS[path.suffix.lower()]


def _read_columns(path: Path, lines: Lines) -> Cells:
    """Reads the column names, and leaves `lines` after them."""
    record = next(_records(lines, _Form(_delimiter(path), True, 0, None)), None)
    if record is None:
        return []
    if isinstance(record.cells, Refusal):
        raise DataError(f"{path}: its first line cannot be read as column names ({record.cells.detail})")
    names: Cells = []
    for name in record.cells:
        earlier = sum(1 for other in record.cells[: len(names)] if other == name)
        names.append(f"{name}.{earlier}" if name and earlier else name)
    return names


def _is_quoted(path: Path, form: _Form) -> bool:
    """Returns whether a TSV is quoted like CSV."""
    with Lines(path) as lines:
        header = lines.next()
        if header is not None and header.text.startswith('"') and header.text.endswith('"'):
            return True
        needed = broken = 0
        for record in _records(lines, form):
            broken += isinstance(record.cells, Refusal)
            needed += record.needs_marks
    return needed > broken


def _records(lines: Lines, form: _Form) -> Iterator[_Record]:
    """Yields the rows from the current line to the end of the file.

    After a row with broken marks, the next mark may be the end of a cell rather than an ordinary character.
    """
    after_broken = False
    while True:
        try:
            line = lines.next()
            if line is None:
                return
            if line.characters > MAX_ROW_BYTES:
                yield _Record(line.number, _too_large(line.characters))
            elif form.quoted and '"' in line.text:
                record = _Quoted(lines, form, line).read()
                if after_broken and record.bare:
                    record.cells = Refusal("bad row", "a quotation mark in a cell, after a row whose marks are broken")
                after_broken = not _is_whole(record, form)
                yield record
            elif line.text:
                yield _Record(line.number, line.text.split(form.delimiter))
        except UnicodeDecodeError as error:
            detail = f"the rest of the file: it cannot be read as {error.encoding} ({error.reason})"
            yield _Record(lines.number + 1, Refusal("unreadable rows", detail))
            return


def _is_whole(record: _Record, form: _Form) -> bool:
    return not isinstance(record.cells, Refusal) and len(record.cells) == form.columns


def _too_large(characters: int) -> Refusal:
    return Refusal("row too large", f"{characters} characters, at most {MAX_ROW_BYTES} are read")


class _Broken(Exception):
    """Raised with a description of a quotation mark that does not open or close a cell."""


@dataclass
class _Quoted:
    """Parser of one row with quotation marks, from its first line on."""

    lines: Lines
    form: _Form
    line: TextLine
    needs_marks: bool = False
    bare: bool = False
    characters: int = 0
    rows_inside: int = 0
    whole_lines: int = 0
    second: tuple[int, int] | None = None

    def read(self) -> _Record:
        """Returns the row; where only its first line is broken, the lines after it will be read again."""
        first = self.line.number
        self._count(self.line)
        try:
            cells: Cells | Refusal = self._cells()
        except _Broken as broken:
            cells = Refusal("bad row", f"{broken} (line {self.line.number})")
            if self.second is not None and (self.whole_lines or self.rows_inside > 1):
                self.lines.go_back(self.second)
            return _Record(first, cells)
        if self.rows_inside > 1:
            assert self.second is not None, "a single line is at most one row"
            self.lines.go_back(self.second)
            detail = f"a quotation mark that is closed only in line {self.line.number}, after lines that look like rows"
            return _Record(first, Refusal("bad row", detail))
        if self.characters > MAX_ROW_BYTES:
            cells = _too_large(self.characters)
        return _Record(first, cells, self.needs_marks, self.bare)

    def _count(self, line: TextLine) -> None:
        self.characters += line.characters
        self.rows_inside += self.form.looks_like_a_row(line.text)

    def _cells(self) -> Cells:
        cells: Cells = []
        at, delimiter = 0, self.form.delimiter
        while True:
            if self.line.text.startswith('"', at):
                cell, at = self._quoted_cell(at + 1)
                cells.append(cell)
                if at == len(self.line.text):
                    return cells
                if not self.line.text.startswith(delimiter, at):
                    raise _Broken("text after a closing quotation mark")
                at += 1
                continue
            stop = self.line.text.find(delimiter, at)
            cells.append(self.line.text[at:] if stop < 0 else self.line.text[at:stop])
            self.bare = self.bare or '"' in cells[-1]
            if stop < 0:
                return cells
            at = stop + 1

    def _quoted_cell(self, at: int) -> tuple[str, int]:
        """Returns the cell that begins at `at`, and the place after its closing mark, which may be lines later."""
        pieces: list[str] = []
        while True:
            mark = self.line.text.find('"', at)
            if mark < 0:
                pieces.append(self.line.text[at:] + self.line.end)
                self._next_line()
                # A row that is too large is not kept, but its end is still searched.
                pieces, at = pieces if self.characters <= MAX_ROW_BYTES else [], 0
                continue
            pieces.append(self.line.text[at:mark])
            at = mark + 1
            if not self.line.text.startswith('"', at):
                cell = "".join(pieces)
                self.needs_marks = self.needs_marks or any(
                    mark in cell for mark in (self.form.delimiter, "\n", "\r", '"')
                )
                return cell, at
            pieces.append('"')
            at += 1

    def _next_line(self) -> None:
        if self.second is None:
            self.second = self.lines.place()
        line = self.lines.next()
        if line is None:
            raise _Broken("a quotation mark that is never closed")
        self.line = line
        self._count(line)
        self.whole_lines += line.text.count(self.form.delimiter) == self.form.columns - 1
        if line.characters > MAX_ROW_BYTES:
            raise _Broken(f"a line of {line.characters} characters")
