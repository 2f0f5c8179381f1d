"""How often a comparison has read the test split: a line in the cell's folder before every time it is scored there."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fvl_lightning.comparison.cell import Cell
from fvl_lightning.core.jsonl import append_rows, read_rows

FILE = "test_readings.jsonl"
REPORTED = "reported.jsonl"
"""In the comparison's folder: a line for every set of cells that a report was made of."""


def note_reading(folder: Path, cell: str) -> None:
    """Adds a line for the cell of this folder, `cell` naming what makes its result; nothing takes it away again."""
    _add(folder / FILE, {"cell": cell})


def readings_of(folder: Path, cells: Sequence[Cell]) -> dict[str, Any]:
    """What the report of the comparison in `folder` says of them; notes that a report of these cells is made.

    Returns:
        `first` and `last` (UTC), `readings` of the cells, `again` {cell: {readings, configurations}} of those that were
        scored more than once, `others`, the folders of what was scored and is no cell of this comparison any more, and
        `earlier` [{time, changed}], the reports of other cells, with those that are new, gone or configured otherwise.
    """
    found = {file.parent: list(read_rows(file)) for file in sorted(folder.rglob(FILE))}
    mine = {cell.name: found.pop(cell.folder) for cell in cells if cell.folder in found}
    times = sorted(line["time"] for lines in mine.values() for line in lines)
    return {
        "first": times[0] if times else None,
        "last": times[-1] if times else None,
        "readings": len(times),
        "again": {
            name: {"readings": len(lines), "configurations": len({line["cell"] for line in lines})}
            for name, lines in mine.items()
            if len(lines) > 1
        },
        "others": [str(other.relative_to(folder)) for other in found],
        "earlier": _earlier(folder / REPORTED, {cell.name: cell.key for cell in cells}),
    }


def _earlier(file: Path, cells: dict[str, str]) -> list[dict[str, Any]]:
    """Reports of other cells than these {name: key}, which are noted as the newest."""
    reports = list(read_rows(file))
    if not reports or reports[-1]["cells"] != cells:
        _add(file, {"cells": cells})
    return [
        {"time": report["time"], "changed": sorted(dict(cells.items() ^ report["cells"].items()))}
        for report in reports
        if report["cells"] != cells
    ]


def _add(file: Path, line: dict[str, Any]) -> None:
    timed = {"time": datetime.now(UTC).isoformat(timespec="seconds"), **line}
    append_rows(file, [timed])
