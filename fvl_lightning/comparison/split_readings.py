"""Test-split access log: a line in the cell's folder before every time the cell is scored on the test split."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fvl_lightning.comparison.cell import Cell
from fvl_lightning.comparison.result_files.comparison import EarlierReport, RepeatedAccess, SplitAccess
from fvl_lightning.core.jsonl import append_rows, read_valid_rows

ACCESS_LOG = "test_readings.jsonl"
"""In a cell's folder: a line for every time it was scored on the test split."""
REPORT_LOG = "reported.jsonl"
"""In the comparison's folder: a line for every set of cells that a report was made of."""


def log_test_access(folder: Path, key: str) -> None:
    """Adds a line to the log of a cell's folder; nothing removes it again.

    Args:
        folder: the cell's folder.
        key: names everything that makes the cell's result.
    """
    _add(folder / ACCESS_LOG, {"cell": key})


def read_test_access(folder: Path, cells: Sequence[Cell]) -> SplitAccess:
    """Returns how often the test split was scored, and logs that a report of these cells is made.

    Args:
        folder: the comparison's folder.
        cells: the cells of the report.
    """
    logs = {file.parent: read_valid_rows(file, _is_access) for file in sorted(folder.rglob(ACCESS_LOG))}
    by_cell = {cell.name: logs.pop(cell.folder) for cell in cells if cell.folder in logs}
    times = sorted(line["time"] for lines in by_cell.values() for line in lines)
    return SplitAccess(
        first=times[0] if times else None,
        last=times[-1] if times else None,
        readings=len(times),
        again={
            name: RepeatedAccess(len(lines), len({line["cell"] for line in lines}))
            for name, lines in by_cell.items()
            if len(lines) > 1
        },
        others=[str(other.relative_to(folder)) for other in logs],
        earlier=_earlier(folder / REPORT_LOG, {cell.name: cell.key for cell in cells}),
    )


def report_to_replace(folder: Path, cells: Sequence[Cell]) -> EarlierReport | None:
    """Returns the newest report, if it was made of other cells than these; None where there is none, or a report of
    the same cells.
    """
    reports = read_valid_rows(folder / REPORT_LOG, _is_report)
    now = {cell.name: cell.key for cell in cells}
    return _changed(reports[-1], now) if reports and reports[-1]["cells"] != now else None


def _earlier(file: Path, cells: dict[str, str]) -> list[EarlierReport]:
    """Returns the reports of other cells than these {name: key}, which are logged as the newest report."""
    reports = read_valid_rows(file, _is_report)
    if not reports or reports[-1]["cells"] != cells:
        _add(file, {"cells": cells})
    return [_changed(report, cells) for report in reports if report["cells"] != cells]


def _changed(report: dict[str, Any], cells: dict[str, str]) -> EarlierReport:
    return EarlierReport(report["time"], sorted(dict(cells.items() ^ report["cells"].items())))


def _is_access(line: dict[str, Any]) -> bool:
    return all(isinstance(line.get(key), str) for key in ("time", "cell"))


def _is_report(line: dict[str, Any]) -> bool:
    cells = line.get("cells")
    texts = [*cells.values(), line.get("time")] if isinstance(cells, dict) else [None]
    return all(isinstance(text, str) for text in texts)


def _add(file: Path, line: dict[str, Any]) -> None:
    timed = {"time": datetime.now(UTC).isoformat(timespec="seconds"), **line}
    append_rows(file, [timed])
