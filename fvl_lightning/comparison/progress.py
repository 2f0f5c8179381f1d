"""The live table of a comparison's cells, and a line for each that ends."""

import time
from collections.abc import Sequence

from rich.table import Table

from fvl_lightning.comparison.cell import Cell, CellProgress


def cells_table(cells: Sequence[Cell]) -> Table:
    """Arms down, seeds across: what each cell is doing, its steps, loss and the time it has left."""
    seeds = list(dict.fromkeys(cell.seed for cell in cells))
    table = Table("arm", *(f"seed {seed}" for seed in seeds), title=_title(cells), title_justify="left")
    for arm in dict.fromkeys(cell.arm for cell in cells):
        places = {cell.seed: cell for cell in cells if cell.arm == arm}
        table.add_row(arm, *(_state(places[seed]) for seed in seeds))
    return table


def ended_lines(cells: Sequence[Cell], running: list[Cell]) -> list[str]:
    """A line for each of `running` that has ended; it is taken off that list."""
    ended = [cell for cell in running if cell.code is not None]
    running[:] = [cell for cell in running if cell.code is None]
    return [f"{cell.name}: {_state(cell)}, {_title(cells)}" for cell in ended]


def _state(cell: Cell) -> str:
    if cell.code is not None:
        return "finished" if cell.code == 0 else f"failed, see {cell.log}"
    if cell.started is None:
        return "finished" if cell.finished else "failed before" if cell.failure else "waiting"
    now = cell.progress()
    parts = [now.doing, f"{now.step}/{now.steps}"]
    parts += [] if now.loss is None else [f"loss {now.loss:.3f}"]
    seconds = _seconds_left(cell, now)
    return ", ".join(parts + ([] if seconds is None else [_duration(seconds)]))


def _title(cells: Sequence[Cell]) -> str:
    finished = sum(cell.code == 0 or (cell.code is None and cell.started is None and cell.finished) for cell in cells)
    return f"{finished} of {len(cells)} cells finished"


def _seconds_left(cell: Cell, now: CellProgress) -> float | None:
    """By the speed of this session; None while there is none, and while it answers."""
    if cell.started is None or now.step <= cell.started[1] or now.step == now.steps:
        return None
    since, first = cell.started
    return (time.monotonic() - since) / (now.step - first) * (now.steps - now.step)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s left" if seconds < 100 else f"{seconds / 60:.0f} min left"
