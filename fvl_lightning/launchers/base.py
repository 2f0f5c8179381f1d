"""Protocols of launchers and of the tasks that they run."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from fvl_lightning.launchers.resources import ResourcesConfig

POLL_SECONDS = 0.5
"""Pause between two checks of running processes."""


def thread_limits(resources: ResourcesConfig) -> dict[str, str]:
    """Returns the environment of a task's processes that limits their threads, because tasks share a machine."""
    return dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(resources.threads))


class Task(Protocol):
    """A process per rank to run, such as a cell of a comparison."""

    code: int | None
    """The exit code of the processes; None until they have ended."""

    @property
    def name(self) -> str:
        """The name in messages."""

    @property
    def folder(self) -> Path:
        """The task's own folder."""

    @property
    def resources(self) -> ResourcesConfig:
        """Devices, cores and memory of the task; every device is a rank, a process of its own."""

    @property
    def gpus(self) -> bool:
        """Returns whether the ranks compute on GPUs where there are any."""

    @property
    def command(self) -> list[str]:
        """The command line of every rank."""

    @property
    def log(self) -> Path:
        """The file for the output of the process."""

    def prepare(self) -> None:
        """Writes what the process reads; called right before the start."""


class Launcher(Protocol):
    """Runs tasks, each in processes of its own that it starts with `task.command` after `task.prepare()`."""

    def run(self, tasks: Sequence[Task], watch: Callable[[], None]) -> None:
        """Runs every task to its end and sets its exit code; one that fails does not stop the others.

        Args:
            tasks: those to run.
            watch: called a few times a second while they run.

        Raises:
            KeyboardInterrupt, Preempted: after Ctrl-C or SIGTERM, once every task has finished its step and saved.
        """
