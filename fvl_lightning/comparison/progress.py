"""Live table of a comparison's cells, and a line for each cell that ends."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table

from fvl_lightning.comparison.cell import Cell, CellProgress

logger = logging.getLogger(__name__)


@contextmanager
def show_progress(cells: Sequence[Cell], todo: Sequence[Cell], console: Console) -> Iterator[Callable[[], None]]:
    """Shows how far the cells are: a live table, or log lines where there is no terminal.

    Args:
        cells: all cells of the comparison.
        todo: those that run now.
        console: for the table.

    Yields:
        What is to be called a few times a second.
    """
    if console.is_terminal:
        with Live(cells_table(cells), console=console, refresh_per_second=2, transient=True) as live:
            yield lambda: live.update(cells_table(cells))
        return
    finished = sum(cell.finished for cell in cells if cell not in todo)
    logger.info("%d cells to run, %d of %d finished before", len(todo), finished, len(cells))
    running = list(todo)

    def log_ended() -> None:
        for line in ended_lines(cells, running):
            logger.info("%s", line)

    yield log_ended


def cells_table(cells: Sequence[Cell]) -> Table:
    """Returns a table with arms as rows and seeds as columns: activity, step, loss and time left of each cell."""
    seeds = list(dict.fromkeys(cell.seed for cell in cells))
    table = Table("arm", *(f"seed {seed}" for seed in seeds), title=_title(cells), title_justify="left")
    for arm in dict.fromkeys(cell.arm for cell in cells):
        by_seed = {cell.seed: cell for cell in cells if cell.arm == arm}
        table.add_row(arm, *(_state(by_seed[seed]) for seed in seeds))
    return table


def ended_lines(cells: Sequence[Cell], running: list[Cell]) -> list[str]:
    """Returns a line for each cell of `running` that has ended, and removes these cells from the list."""
    ended = [cell for cell in running if cell.code is not None]
    running[:] = [cell for cell in running if cell.code is None]
    return [f"{cell.name}: {_state(cell)}, {_title(cells)}" for cell in ended]


def _state(cell: Cell) -> str:
    if cell.code is not None:
        return "finished" if cell.code == 0 else f"failed, see {cell.log}"
    if cell.started is None:
        return "finished" if cell.finished else "failed before" if cell.failure else "waiting"
    now = cell.progress()
    parts = [now.activity, f"{now.step}/{now.steps}"]
    parts += [] if now.loss is None else [f"loss {now.loss:.3f}"]
    seconds = _seconds_left(cell, now)
    return ", ".join(parts + ([] if seconds is None else [_duration(seconds)]))


def _title(cells: Sequence[Cell]) -> str:
    finished = sum(cell.code == 0 or (cell.code is None and cell.started is None and cell.finished) for cell in cells)
    return f"{finished} of {len(cells)} cells finished"


def _seconds_left(cell: Cell, now: CellProgress) -> float | None:
    """Estimates the time left by the speed of this session; None before the first step and while the cell answers."""
    if cell.started is None or now.step <= cell.started[1] or now.step == now.steps:
        return None
    since, first = cell.started
    return (time.monotonic() - since) / (now.step - first) * (now.steps - now.step)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s left" if seconds < 100 else f"{seconds / 60:.0f} min left"
