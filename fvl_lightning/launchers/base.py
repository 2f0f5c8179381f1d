"""Protocols of launchers and of the tasks that they run."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

POLL_SECONDS = 0.5
"""Pause between two checks of running processes."""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Environment of a task, because several tasks share a machine."""


class Task(Protocol):
    """A process to run, such as a cell of a comparison."""

    code: int | None
    """The exit code of the process; None until it has ended."""

    @property
    def name(self) -> str:
        """The name in messages."""

    @property
    def folder(self) -> Path:
        """The task's own folder."""

    @property
    def command(self) -> list[str]:
        """The command line that runs the task."""

    @property
    def log(self) -> Path:
        """The file for the output of the process."""

    def prepare(self) -> None:
        """Writes what the process reads; called right before the start."""


class Launcher(Protocol):
    """Runs tasks, each in a process of its own that it starts with `task.command` after `task.prepare()`."""

    def run(self, tasks: Sequence[Task], watch: Callable[[], None]) -> None:
        """Runs every task to its end and sets its exit code; one that fails does not stop the others.

        Args:
            tasks: those to run.
            watch: called a few times a second while they run.

        Raises:
            KeyboardInterrupt, Preempted: after Ctrl-C or SIGTERM, once every task has finished its step and saved.
        """
