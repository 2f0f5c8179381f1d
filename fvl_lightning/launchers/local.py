"""Launcher of tasks as processes on this machine."""

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

from fvl_lightning.launchers.base import POLL_SECONDS, Task, thread_limits
from fvl_lightning.launchers.gpus import GpuPool, visible_gpus
from fvl_lightning.launchers.ranks import ranks_command
from fvl_lightning.training.fault_tolerance.process_exit import started_by_this_process
from fvl_lightning.training.fault_tolerance.signals import Preempted

logger = logging.getLogger(__name__)


class LocalLauncher:
    """Runs up to `jobs` tasks at a time on this machine, each with cores and GPUs of its own.

    A task waits until as many GPUs as it has ranks are free. Tasks on a CPU wait for none.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs

    def run(self, tasks: Sequence[Task], watch: Callable[[], None]) -> None:
        """See Launcher.

        Raises:
            ConfigError: this machine has fewer GPUs than a task needs.
        """
        gpus = GpuPool(visible_gpus() if any(task.gpus for task in tasks) else [])
        for task in tasks:
            gpus.check(task.resources, task.gpus)
        if tasks and (fitting := gpus.at_a_time(self.jobs, tasks[0])) < min(self.jobs, len(tasks)):
            logger.info("%d cells at a time, not %d: there are %s", fitting, self.jobs, gpus)
        waiting = list(tasks)
        running: list[tuple[Task, subprocess.Popen[bytes]]] = []
        try:
            while waiting or running:
                for task, process in running:
                    task.code = process.poll()
                    if task.code is not None:
                        gpus.give_back(task)
                running = [(task, process) for task, process in running if task.code is None]
                while waiting and len(running) < self.jobs:
                    if (devices := gpus.take(waiting[0])) is None:
                        break
                    running.append((waiting[0], _start(waiting[0], devices)))
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


def _start(task: Task, devices: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Starts the process in a session of its own, so that Ctrl-C reaches it once, through this process.

    It ends with this process. A task of several ranks is one process that starts them and ends with them.

    Args:
        task: the task.
        devices: the environment that gives it GPUs.
    """
    task.prepare()
    with task.log.open("w", encoding="utf-8") as log:
        return subprocess.Popen(
            ranks_command(task.resources.devices, task.command), stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | thread_limits(task.resources) | dict(devices) | started_by_this_process(),
        )  # fmt: skip
