"""Launcher of tasks as processes on this machine."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence

from fvl_lightning.launchers.base import ONE_THREAD, POLL_SECONDS, Task
from fvl_lightning.training.fault_tolerance.process_exit import started_by_this_process
from fvl_lightning.training.fault_tolerance.signals import Preempted


class LocalLauncher:
    """Runs up to `jobs` tasks at a time on this machine, each with one thread."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs

    def run(self, tasks: Sequence[Task], watch: Callable[[], None]) -> None:
        """See Launcher."""
        waiting = list(tasks)
        running: list[tuple[Task, subprocess.Popen[bytes]]] = []
        try:
            while waiting or running:
                for task, process in running:
                    task.code = process.poll()
                running = [(task, process) for task, process in running if task.code is None]
                while waiting and len(running) < self.jobs:
                    running.append((waiting[0], _start(waiting[0])))
                    waiting.pop(0)
                watch()
                time.sleep(POLL_SECONDS)
        except (KeyboardInterrupt, Preempted):
            _stop(running)
            raise


def _stop(running: Sequence[tuple[Task, subprocess.Popen[bytes]]]) -> None:
    """Asks the tasks to save and end, and waits for them; each further Ctrl-C is passed on, a third one kills them."""
    numbers = iter((signal.SIGINT, signal.SIGINT, signal.SIGKILL))
    asks = True
    while None in [process.poll() for _, process in running]:
        try:
            if asks:
                asks, number = False, next(numbers, signal.SIGKILL)
                for _, process in running:
                    process.send_signal(number)
            time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            asks = True
        except Preempted:
            pass  # a cluster asks more than once
    for task, process in running:
        task.code = process.returncode


def _start(task: Task) -> subprocess.Popen[bytes]:
    """Starts the process in a session of its own, so that Ctrl-C reaches it once, through this process.

    It ends with this process.
    """
    task.prepare()
    with task.log.open("w", encoding="utf-8") as log:
        return subprocess.Popen(
            task.command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            env=os.environ | ONE_THREAD | started_by_this_process(),
        )
