"""Asking a training to stop: Ctrl-C by a person, SIGTERM and SIGUSR1 by a cluster that wants the machine back,
SIGHUP by a terminal that goes.

While steps are made a signal is a request: the step under way is finished and saved. Outside of them (data, building,
saving the model) there is no step to finish, and the request is answered at once: by an exception, and before there is
anything to leave in order (imports, ranks that wait for each other) by the end of the process.

The command line imports this module before all else, so that it imports nothing that takes time.
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
"""The terminal has gone, with the connection to the machine for instance."""
CLUSTER = tuple(
    number for number in (signal.SIGTERM, getattr(signal, "SIGUSR1", None), HANGUP) if number is not None
)  # fmt: skip
"""What a cluster sends before it takes a machine away, where SLURM's `--signal` chooses SIGUSR1; and a terminal that
goes, unless nohup has the process ignore it."""
NOT_BEGUN = (
    "stopped for the cluster before the first step: nothing was trained, what was saved before is kept, exit code "
    f"{EXIT_REQUEUE} asks for the same command again (`--resume-or-start` for a training)"
)
LINGER_SECONDS = 0.5
"""Rank 0 ends this much later: it holds the process group's store, whose loss the others would log at length."""


class Preempted(BaseException):
    """The cluster asked for the machine; like KeyboardInterrupt no Exception, so that nothing handles it by mistake."""


class Stop(IntEnum):
    """The origin of a stop request; the larger one of two counts."""

    NOBODY = 0
    CLUSTER = 1
    PERSON = 2

    def raise_for(self) -> None:
        """Preempted or KeyboardInterrupt; nothing where nobody asked."""
        if self is Stop.CLUSTER:
            raise Preempted
        if self is Stop.PERSON:
            raise KeyboardInterrupt


class StopSignals:
    """Takes the signals as requests while it is entered; a second Ctrl-C interrupts at once.

    Clusters and launchers often send SIGTERM twice, so that one may come any number of times.
    """

    def __init__(self) -> None:
        self.requested = Stop.NOBODY
        """What this process has been asked; `agreed` says what all have."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, *CLUSTER)}
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def listen(self) -> None:
        """Listens (again: Lightning takes SIGTERM over when a training starts), where this is the main thread."""
        handlers: dict[int, Any] = dict.fromkeys(CLUSTER, self._cluster_asks)
        _set({**handlers, signal.SIGINT: self._person_asks})

    def agreed(self, trainer: "Trainer") -> Stop:
        """The request of all ranks, which must all ask at the same step."""
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
    """SIGTERM, SIGUSR1 and SIGHUP raise Preempted."""
    with handled(dict.fromkeys(CLUSTER, _preempt)):
        yield


@contextmanager
def handled(handlers: Mapping[int, Any]) -> Iterator[None]:
    """Signals have these handlers, where this is the main thread."""
    before: dict[int, Any] = {number: signal.getsignal(number) for number in handlers}
    _set(handlers)
    try:
        yield
    finally:
        # Those of a process that was about to begin: now it is about to end, and has something to say of its own.
        _set({number: signal.SIG_IGN if handler is _be_still else handler for number, handler in before.items()})


def end_at_once() -> None:
    """From here on SIGTERM, SIGUSR1 and SIGHUP end this process with a sentence and exit code 75; for the main thread.

    A thread answers them, since Python's handlers wait for the main thread, which may be in an import, or in C++ where
    it waits for other ranks. One that others started with these signals blocked misses none that came before.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    threading.Thread(target=_answer, args=(reading,), daemon=True, name="stop").start()
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    _set(dict.fromkeys(CLUSTER, _be_still))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, CLUSTER)


@contextmanager
def ended_at_once() -> Iterator[None]:
    """As `end_at_once`, while it is entered; nothing where this is not the main thread."""
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
    """Has nothing more written to a terminal that has gone: an error in saying so would keep the run from saving."""
    if signum == HANGUP:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            with contextlib.suppress(OSError):
                if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                    os.dup2(nowhere, descriptor)
        os.close(nowhere)


def _be_still(signum: int, frame: FrameType | None) -> None:
    """The main thread does no more: what it meets while the others end (they are gone) is nobody's business."""
    threading.Event().wait()


def _answer(reading: int) -> None:
    """Ends the process at a signal that has no other handler by then."""
    while received := os.read(reading, 1):
        if signal.getsignal(received[0]) is _be_still:
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
