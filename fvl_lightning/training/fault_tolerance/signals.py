"""Signals that stop a training: Ctrl-C from a person, SIGTERM and SIGUSR1 from a cluster, SIGHUP from a terminal.

- During training steps, a signal is a request (`StopSignals`). The current step is finished, and the checkpoint
  callback (training/checkpointing/callback.py) saves before the training ends.
- Outside of steps, such as while data is prepared, the signal raises `Preempted` (`preemptible`).
- During imports, and while ranks wait for each other, the signal ends the process (`end_at_once`).

The command line turns each of them into an exit code (cli/main.py). It imports this module first, so this module must
import nothing that takes long.
"""

import contextlib
import os
import signal
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType
from typing import TYPE_CHECKING, Any

from fvl_lightning.core.errors import EXIT_REQUEUE

if TYPE_CHECKING:
    from lightning import Trainer

HANGUP = getattr(signal, "SIGHUP", None)
"""Sent when the terminal closes, for instance because the connection to the machine is lost."""
CLUSTER = tuple(
    number for number in (signal.SIGTERM, getattr(signal, "SIGUSR1", None), HANGUP) if number is not None
)  # fmt: skip
"""Signals that a cluster sends before it takes a machine away (SIGUSR1 if SLURM's `--signal` says so), and SIGHUP,
unless nohup makes the process ignore it."""
NOT_BEGUN = (
    "stopped for the cluster before the first step: nothing was trained, what was saved before is kept, exit code "
    f"{EXIT_REQUEUE} asks for the same command again (`--resume-or-start` for a training)"
)
LINGER_SECONDS = 0.5
"""Rank 0 ends this much later: it holds the process group's store, whose loss the others would log at length."""


class Preempted(BaseException):
    """A signal of CLUSTER was received; like KeyboardInterrupt no Exception, so that no handler takes it by mistake."""


class Stop(IntEnum):
    """The origin of a stop request; of two requests the larger counts."""

    NOBODY = 0
    CLUSTER = 1
    PERSON = 2

    def raise_for(self) -> None:
        """Raises Preempted or KeyboardInterrupt; does nothing if nobody asked."""
        if self is Stop.CLUSTER:
            raise Preempted
        if self is Stop.PERSON:
            raise KeyboardInterrupt


class StopSignals:
    """Context manager that turns the signals into requests; a second Ctrl-C raises KeyboardInterrupt at once.

    SIGTERM may arrive any number of times, because clusters and launchers often send it twice.
    """

    def __init__(self) -> None:
        self.requested = Stop.NOBODY
        """The request that this process received; `agreed` returns that of all ranks."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, *CLUSTER)}
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def listen(self) -> None:
        """Installs the handlers in the main thread; again when a training starts, as Lightning replaces SIGTERM's."""
        handlers: dict[int, Any] = dict.fromkeys(CLUSTER, self._cluster_asks)
        _set({**handlers, signal.SIGINT: self._person_asks})

    def agreed(self, trainer: "Trainer") -> Stop:
        """Returns the largest request of all ranks; every rank must call it at the same step."""
        import torch

        if trainer.world_size == 1:
            return self.requested
        own = torch.tensor(int(self.requested), device=trainer.strategy.root_device)
        return Stop(int(trainer.strategy.reduce(own, reduce_op="max")))

    def _person_asks(self, signum: int, frame: FrameType | None) -> None:
        if self.requested is Stop.PERSON:
            self._restore()
            raise KeyboardInterrupt
        self.requested = Stop.PERSON

    def _cluster_asks(self, signum: int, frame: FrameType | None) -> None:
        _leave_terminal(signum)
        self.requested = max(self.requested, Stop.CLUSTER)

    def _restore(self) -> None:
        _set(self._before)


@contextmanager
def preemptible() -> Iterator[None]:
    """Makes SIGTERM, SIGUSR1 and SIGHUP raise Preempted."""
    with handled(dict.fromkeys(CLUSTER, _preempt)):
        yield


@contextmanager
def handled(handlers: Mapping[int, Any]) -> Iterator[None]:
    """Installs handlers of signals in the main thread, and restores the former ones at the end."""
    before: dict[int, Any] = {number: signal.getsignal(number) for number in handlers}
    _set(handlers)
    try:
        yield
    finally:
        # A process that had not begun when it was entered is about to end now, with a message of its own.
        _set({number: signal.SIG_IGN if handler is _block else handler for number, handler in before.items()})


def end_at_once() -> None:
    """Makes SIGTERM, SIGUSR1 and SIGHUP end this process with one sentence and exit code 75; for the main thread.

    A thread does this, because a Python handler has to wait for the main thread, which may be in an import, or in C++
    code that waits for other ranks. The signals are unblocked here: if the parent started this process with them
    blocked, those that arrived before are handled now.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    threading.Thread(target=_answer, args=(reading,), daemon=True, name="stop").start()
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    _set(dict.fromkeys(CLUSTER, _block))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, CLUSTER)


@contextmanager
def ended_at_once() -> Iterator[None]:
    """Does the same as `end_at_once` until the context ends; does nothing outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in CLUSTER}
    earlier = signal.set_wakeup_fd(-1)
    end_at_once()
    try:
        yield
    finally:
        _set(before)
        os.close(signal.set_wakeup_fd(earlier))


def _preempt(signum: int, frame: FrameType | None) -> None:
    _leave_terminal(signum)
    raise Preempted


def _leave_terminal(signum: int) -> None:
    """Redirects output away from a closed terminal, because an error while printing would keep the run from saving."""
    if signum == HANGUP:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            with contextlib.suppress(OSError):
                if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                    os.dup2(nowhere, descriptor)
        os.close(nowhere)


def _block(signum: int, frame: FrameType | None) -> None:
    """Blocks the main thread for good, so that errors caused by other ranks that end are not shown."""
    threading.Event().wait()


def _answer(reading: int) -> None:
    """Ends the process when a signal arrives whose handler is still `_block`."""
    while received := os.read(reading, 1):
        if signal.getsignal(received[0]) is _block:
            if os.environ.get("RANK", "0") == "0":
                with contextlib.suppress(OSError):  # a terminal that has gone
                    os.write(2, f"{NOT_BEGUN}\n".encode())
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                time.sleep(LINGER_SECONDS if "RANK" in os.environ else 0)
            os._exit(EXIT_REQUEUE)
    os.close(reading)


def _set(handlers: Mapping[int, Any]) -> None:
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            if number != HANGUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, handler)
