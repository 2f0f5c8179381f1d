"""Tables of a report: rows of formatted texts, as Markdown and for the terminal."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from rich.table import Table

ABSENT = "-"
"""Shown in place of a number that is missing."""


@dataclass(frozen=True)
class Grid:
    """A table of formatted texts."""

    title: str
    header: Sequence[str]
    """Names of the columns."""
    rows: Sequence[Sequence[str]]
    """Each as long as the header."""
    note: str = ""
    """Text between title and table."""


def format_score(value: float | None) -> str:
    """Returns a score with three digits."""
    return ABSENT if value is None or not isfinite(value) else f"{value:.3f}"


def signed(value: float) -> str:
    """Returns a difference with its sign."""
    return f"{value:+.3f}" if isfinite(value) else ABSENT


def interval(bounds: Sequence[float]) -> str:
    """Returns both ends of an interval."""
    return f"{signed(bounds[0])} to {signed(bounds[1])}" if all(map(isfinite, bounds)) else ABSENT


def markdown_rows(grid: Grid) -> list[str]:
    """Returns the lines of a Markdown table, with two for the header; markup in its texts is escaped."""
    rows = [[markdown_text(text) for text in row] for row in (grid.header, *grid.rows)]
    header, *others = ["| " + " | ".join(row) + " |" for row in rows]
    return [header, "|" + "|".join([":---", *["---:"] * (len(grid.header) - 1)]) + "|", *others]


def markdown_text(text: str) -> str:
    """Escapes text for a cell of a Markdown table, so that it cannot end the cell or become HTML, link or image."""
    return re.sub(r"[\\|\[\]<]", lambda found: "&lt;" if found[0] == "<" else f"\\{found[0]}", " ".join(text.split()))


def markdown_table(grid: Grid, level: int = 2) -> str:
    """Returns a section of a Markdown file: title, note and table; `level` is that of the title."""
    title = f"{'#' * level} {markdown_text(grid.title)}"
    return "\n".join([title, "", *([markdown_text(grid.note), ""] if grid.note else []), *markdown_rows(grid)])


def rich_table(grid: Grid, line_before: str = "") -> Table:
    """Returns a table for a terminal.

    Args:
        grid: the table.
        line_before: a line is drawn above the row that begins with this text.
    """
    table = Table(title=grid.title, title_justify="left", title_style="bold", caption=grid.note or None)
    for number, name in enumerate(grid.header):
        table.add_column(name, justify="right" if number else "left")
    for row in grid.rows:
        if line_before and row[0] == line_before:
            table.add_section()
        table.add_row(*row)
    return table
