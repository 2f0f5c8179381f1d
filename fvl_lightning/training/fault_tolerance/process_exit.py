"""Ends this process in time: after a second Ctrl-C, with the process that started it, and where its exit hangs."""

import os
import signal
import sys
import threading
import time
from typing import Any

from fvl_lightning.core.errors import EXIT_INTERRUPTED, EXIT_REQUEUE

SECONDS_LEFT = {2: 10.0, 3: 1.0}
"""{number of a Ctrl-C: time in which the process must have ended after it}"""
EXIT_SECONDS = 30.0
"""Time that Python's own exit may take, in which it waits for threads and child processes of any library."""
STARTED_BY = "FVL_STARTED_BY"
"""Environment variable with the id of the process that started this one and waits for it."""
FOLLOW_SECONDS = 0.5
"""Pause between two looks at whether that process is still there."""


def exit_within(seconds: float, code: int) -> None:
    """Ends this process with `code` after that time from a thread, if it has not ended by itself."""
    limit = threading.Timer(seconds, _exit, [code])
    limit.daemon = True
    limit.start()


def begin_exit(code: int) -> None:
    """Limits the time of Python's own exit, which a Ctrl-C shortens; for the main thread."""
    # First the handler: a Ctrl-C while the timer starts would end the process with a traceback.
    signal.signal(signal.SIGINT, lambda *_: _exit(code))
    exit_within(EXIT_SECONDS, code)


def _exit(code: int) -> None:
    for child in _child_processes():
        child.kill()
    os._exit(code)


def _child_processes() -> list[Any]:
    """Returns the child processes that multiprocessing has started, such as workers of loaders."""
    multiprocessing = sys.modules.get("multiprocessing")  # whose import would take time at the start
    return [] if multiprocessing is None else multiprocessing.active_children()


class Interrupts:
    """Counts the Ctrl-C of a process, and limits its time after the second and third."""

    def __init__(self) -> None:
        self._count = 0

    def add(self) -> None:
        """Counts another one."""
        self._count += 1
        if self._count in SECONDS_LEFT:
            exit_within(SECONDS_LEFT[self._count], EXIT_INTERRUPTED)


def end_with_starter() -> None:
    """Ends this process with the one that started it, if that is a process of this project: both as if killed."""
    starter = os.environ.pop(STARTED_BY, None)
    if starter is not None:
        threading.Thread(target=_follow, args=(int(starter),), daemon=True, name="starter").start()


def started_by_this_process() -> dict[str, str]:
    """Returns the environment variable by which a process that is started now ends with this one."""
    return {STARTED_BY: str(os.getpid())}


def _follow(starter: int) -> None:
    while os.getppid() == starter:
        time.sleep(FOLLOW_SECONDS)
    _exit(EXIT_REQUEUE)
