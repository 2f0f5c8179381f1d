"""Who runs the cells of a comparison."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from fvl_lightning.comparison.cell import Cell
from fvl_lightning.training.fault_tolerance.signals import Preempted

POLL_SECONDS = 0.5
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Launcher(Protocol):
    """Runs cells, each in a process of its own that it starts with `cell.command` after `cell.prepare()`."""

    def run(self, cells: Sequence[Cell], watch: Callable[[], None]) -> None:
        """Runs every cell to its end and sets its exit code; one that fails does not stop the others.

        Args:
            cells: those to run.
            watch: called a few times a second while they run.

        Raises:
            KeyboardInterrupt, Preempted: after Ctrl-C or SIGTERM, once every cell has finished its step and saved.
        """


class LocalLauncher:
    """So many at a time on this machine, each with one thread."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs

    def run(self, cells: Sequence[Cell], watch: Callable[[], None]) -> None:
        """See Launcher."""
        waiting = list(cells)
        running: list[tuple[Cell, subprocess.Popen[bytes]]] = []
        try:
            while waiting or running:
                for cell, process in running:
                    cell.code = process.poll()
                running = [(cell, process) for cell, process in running if cell.code is None]
                while waiting and len(running) < self.jobs:
                    running.append((waiting[0], _start(waiting[0])))
                    waiting.pop(0)
                watch()
                time.sleep(POLL_SECONDS)
        except (KeyboardInterrupt, Preempted):
            for _, process in running:
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)
            for cell, process in running:
                cell.code = process.wait()
            raise


def _start(cell: Cell) -> subprocess.Popen[bytes]:
    """The process, in a session of its own so that Ctrl-C reaches it once, through us."""
    cell.prepare()
    with cell.log.open("w", encoding="utf-8") as log:
        return subprocess.Popen(
            cell.command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | ONE_THREAD, start_new_session=True
        )
