"""The arms of a comparison as processes: started a few at a time, watched in a live table, stopped together."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table

from fvl_lightning.core.errors import DataError
from fvl_lightning.training.run_folder import RunFolder
from fvl_lightning.training.stop import Preempted

POLL_SECONDS = 0.5


@dataclass
class Cell:
    """One arm: its folder (with cell.json, later result.json and cell.log) and its stages as (name, steps)."""

    arm: str
    folder: Path
    stages: list[tuple[str, int]]
    process: subprocess.Popen[bytes] | None = None
    log: TextIO | None = None

    def start(self) -> None:
        """Starts the process, with one thread, in a session of its own so that Ctrl-C reaches it once, through us."""
        (self.folder / "result.json").unlink(missing_ok=True)
        one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self.log = (self.folder / "cell.log").open("w", encoding="utf-8")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fvl_lightning.commands.cell", str(self.folder / "cell.json")],
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env=os.environ | one_thread,
            start_new_session=True,
        )

    @property
    def code(self) -> int | None:
        """The exit code, None before the end."""
        return None if self.process is None else self.process.poll()

    def result(self) -> dict[str, Any]:
        """What the cell measured."""
        return json.loads((self.folder / "result.json").read_text(encoding="utf-8"))

    def state(self) -> list[str]:
        """Stage, step and loss for the live table."""
        if self.process is None:
            return ["waiting", "", ""]
        if self.code is not None:
            return ["finished" if self.code == 0 else f"failed, see {self.folder / 'cell.log'}", "", ""]
        for name, steps in reversed(self.stages):
            runs = list(self.folder.glob(f"{name}*/metrics.jsonl"))
            if runs:
                curve = RunFolder(max(runs, key=lambda path: path.stat().st_mtime).parent).curve("train/loss")
                if curve and curve[-1][0] >= steps:
                    return [name if name != self.stages[-1][0] else "answering", f"{curve[-1][0]}/{steps}", ""]
                if curve:
                    return [name, f"{curve[-1][0]}/{steps}", f"{curve[-1][1]:.3f}"]
        return ["starting", "", ""]


def run_cells(cells: list[Cell], jobs: int, console: Console) -> None:
    """Runs every cell, `jobs` at a time; one that fails does not stop the others.

    Raises:
        DataError: cells failed; the sentence has the last words of each.
        KeyboardInterrupt, Preempted: after Ctrl-C or SIGTERM, once every cell has finished its step and saved.
    """
    waiting = list(cells)
    running: list[Cell] = []
    with Live(_table(cells), console=console, refresh_per_second=2, transient=True) as live:
        try:
            while waiting or running:
                running = [cell for cell in running if cell.code is None]
                while waiting and len(running) < max(1, jobs):
                    running.append(waiting.pop(0))
                    running[-1].start()
                live.update(_table(cells))
                time.sleep(POLL_SECONDS)
        except (KeyboardInterrupt, Preempted):
            for cell in running:
                if cell.process is not None and cell.code is None:
                    cell.process.send_signal(signal.SIGINT)
            for cell in running:
                if cell.process is not None:
                    cell.process.wait()
            raise
        finally:
            for cell in cells:
                if cell.log is not None:
                    cell.log.close()
    failed = [cell for cell in cells if cell.code != 0]
    if failed:
        raise DataError("; ".join(f"arm {cell.arm} failed: {_last_words(cell)}" for cell in failed))


def _last_words(cell: Cell) -> str:
    lines = (cell.folder / "cell.log").read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    return said[-1] if said else f"exit code {cell.code}"


def _table(cells: list[Cell]) -> Table:
    table = Table("arm", "stage", "step", "training loss")
    for cell in cells:
        table.add_row(cell.arm, *cell.state())
    return table
