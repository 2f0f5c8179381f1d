"""Signals that stop a training: Ctrl-C from a person, SIGTERM and SIGUSR1 from a cluster, SIGHUP from a terminal.

- During training steps, a signal is a request (`StopSignals`). The current step is finished, and the checkpoint
  callback (training/checkpointing/callback.py) saves before the training ends.
- Outside of steps, such as while data is prepared, the signal raises `Preempted` (`preemptible`) or KeyboardInterrupt.
- During imports, and while ranks wait for each other, the signal ends the process (`handle_from_start`, `end_at_once`).
- A second Ctrl-C raises KeyboardInterrupt in a step too. A thread ends the process where that takes too long, and soon
  after a third one: the main thread may be in C++ code, or in a handler of a library that ignores Ctrl-C.

The command line turns each of them into an exit code (cli/main.py). It imports this module first, so this module must
import nothing that takes long.
"""

import atexit
import contextlib
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar

from fvl_lightning.core.errors import EXIT_INTERRUPTED, EXIT_REQUEUE
from fvl_lightning.training.fault_tolerance.process_exit import Interrupts, end_with_starter

if TYPE_CHECKING:
    from lightning import Trainer

HANGUP = getattr(signal, "SIGHUP", None)
"""Sent when the terminal closes, for instance because the connection to the machine is lost."""
CLUSTER = tuple(
    number for number in (signal.SIGTERM, getattr(signal, "SIGUSR1", None), HANGUP) if number is not None
)  # fmt: skip
"""Signals that a cluster sends before it takes a machine away (SIGUSR1 if SLURM's `--signal` says so), and SIGHUP,
unless nohup makes the process ignore it."""
SUPPORTED = hasattr(signal, "SIGUSR1")
"""Whether this system has the signals."""
PREEMPTIBLE = ("train", "launch", "compare", "demo")
"""The commands that a cluster may stop."""
PLANS = "--plan"
"""With this option a command trains nothing, and there is nothing to resume."""
TALKS = "chat"
"""The command in which Ctrl-C stops an answer, as often as it is pressed."""
NOT_BEGUN = (
    "stopped by a signal before the first step: nothing was trained, what was saved before is kept, exit code "
    f"{EXIT_REQUEUE} asks for the same command again (`--resume-or-start` for a training)"
)
INTERRUPTED = "stopped; what was saved is kept, and the same command (`--resume` for a training) goes on from there"
LINGER_SECONDS = 0.5
"""Rank 0 ends this much later: it holds the process group's store, whose loss the others would log at length."""

REPEAT_SECONDS = 0.05
"""Delay after which a signal is repeated that a destructor has swallowed."""


class Preempted(BaseException):
    """Raised for a signal of CLUSTER; not an Exception (like KeyboardInterrupt), so that no handler catches it."""


class Stop(IntEnum):
    """The origin of a stop request; of two requests the larger counts."""

    NOBODY = 0
    CLUSTER = 1
    PERSON = 2

    def raise_for(self) -> None:
        """Raises Preempted for CLUSTER and KeyboardInterrupt for PERSON; does nothing for NOBODY."""
        if self is Stop.CLUSTER:
            raise Preempted
        if self is Stop.PERSON:
            raise KeyboardInterrupt


class StopSignals:
    """Context manager that turns the signals into requests; a second Ctrl-C raises KeyboardInterrupt at once.

    SIGTERM may arrive any number of times, because clusters and launchers often send it twice.
    """

    late: ClassVar[Stop] = Stop.NOBODY
    """The request that came during the last step of the last training, which it could not stop; for whoever goes on."""

    def __init__(self) -> None:
        self.requested = Stop.NOBODY
        """The request that this process received; `agreed` returns that of all ranks."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, *CLUSTER)}
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        StopSignals.late = self.requested
        self.restore()

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
            self.restore()
            raise KeyboardInterrupt
        self.requested = Stop.PERSON

    def _cluster_asks(self, signum: int, frame: FrameType | None) -> None:
        _leave_terminal(signum)
        self.requested = max(self.requested, Stop.CLUSTER)

    def restore(self) -> None:
        """Restores the earlier signal handlers; after an error, Lightning would ignore Ctrl-C."""
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


def handle_for_command(arguments: Sequence[str]) -> None:
    """Calls `handle_from_start` for `fvl <arguments>`, unless that has been done."""
    command = arguments[0] if arguments else ""
    if signal.getsignal(signal.SIGINT) is not _interrupt:
        handle_from_start(command in PREEMPTIBLE and PLANS not in arguments, limited=command != TALKS)


def handle_from_start(preemptible: bool, limited: bool = True) -> None:
    """Handles the signals of a process that has just begun; for the main thread, before it imports anything else.

    Ctrl-C raises KeyboardInterrupt, or ends the process with one sentence and exit code 130 in an import, where code
    that is not this project's would meet the error. If another process of this project started this one, this one
    ends with it: nobody would know of it.

    Args:
        preemptible: whether SIGTERM, SIGUSR1 and SIGHUP end the process as in `end_at_once`.
        limited: whether the process must end soon after a second Ctrl-C.
    """
    _listen(Interrupts() if limited else None)
    handlers: dict[int, Any] = dict.fromkeys(CLUSTER, _block) if preemptible else {}
    _set({**handlers, signal.SIGINT: _interrupt})
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*CLUSTER, signal.SIGINT))
    os.register_at_fork(after_in_child=_listen_no_more)
    sys.unraisablehook = _send_again
    # Registered first, this is called last: then Python gives signals back to the system, where Ctrl-C kills.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    end_with_starter()


def end_at_once() -> None:
    """Makes Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP end this process with one sentence and its exit code, 130 or 75.

    For the main thread. A thread does this, because a Python handler has to wait for the main thread, which may be in
    an import, or in C++ code that waits for other ranks. The signals are unblocked here: if the parent started this
    process with them blocked, those that arrived before are handled now.
    """
    _listen(None)
    _set(dict.fromkeys((*CLUSTER, signal.SIGINT), _block))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*CLUSTER, signal.SIGINT))


@contextmanager
def ended_at_once() -> Iterator[None]:
    """Does the same as `end_at_once` until the context ends; does nothing outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (*CLUSTER, signal.SIGINT)}
    earlier = signal.set_wakeup_fd(-1)
    end_at_once()
    try:
        yield
    finally:
        _set(before)
        os.close(signal.set_wakeup_fd(earlier))


def _interrupt(signum: int, frame: FrameType | None) -> None:
    while frame is not None:
        # In an import, or at the start, if the signal came while it was blocked: nobody there handles the error.
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>" or frame.f_code is handle_from_start.__code__:
            _end_with_a_sentence(signum)
        frame = frame.f_back
    raise KeyboardInterrupt


def _preempt(signum: int, frame: FrameType | None) -> None:
    _leave_terminal(signum)
    raise Preempted


def _send_again(unraisable: Any) -> None:
    """Repeats a signal whose exception was raised in a destructor, where Python prints and drops every error."""
    kind = unraisable.exc_type
    if not issubclass(kind, (KeyboardInterrupt, Preempted)):
        sys.__unraisablehook__(unraisable)
        return
    number = signal.SIGINT if issubclass(kind, KeyboardInterrupt) else signal.SIGTERM
    # Later, from a thread: its handler must not run in this function, whose errors are dropped too.
    main_thread = threading.main_thread().ident
    threading.Timer(REPEAT_SECONDS, signal.pthread_kill, [main_thread, number]).start()


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


def _listen(interrupts: Interrupts | None) -> None:
    """Starts a thread that receives every signal with a Python handler, even while the main thread is busy."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    threading.Thread(target=_answer, args=(reading, interrupts), daemon=True, name="stop").start()
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)


def _listen_no_more() -> None:
    """Keeps the signals of a forked process from the thread of its parent."""
    with contextlib.suppress(ValueError):  # not forked by the main thread
        signal.set_wakeup_fd(-1)


def _answer(reading: int, interrupts: Interrupts | None) -> None:
    """Reads the signals from a pipe: counts Ctrl-C, and ends the process if the handler is still `_block`."""
    while received := os.read(reading, 1):
        if signal.getsignal(received[0]) is _block:
            _end_with_a_sentence(received[0])
        if interrupts is not None and received[0] == signal.SIGINT:
            interrupts.add()
    os.close(reading)


def _end_with_a_sentence(signum: int) -> None:
    """Ends the process; rank 0 prints for all ranks."""
    if os.environ.get("RANK", "0") == "0":
        sentence = INTERRUPTED if signum == signal.SIGINT else NOT_BEGUN
        with contextlib.suppress(OSError):  # a terminal that has gone
            os.write(2, f"{sentence}\n".encode())
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        time.sleep(LINGER_SECONDS if "RANK" in os.environ else 0)
    os._exit(EXIT_INTERRUPTED if signum == signal.SIGINT else EXIT_REQUEUE)


def _set(handlers: Mapping[int, Any]) -> None:
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            if number != HANGUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, handler)
