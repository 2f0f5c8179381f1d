"""Asking a training to stop: Ctrl-C by a person, SIGTERM and SIGUSR1 by a cluster that wants the machine back.

While steps are made a signal is a request: the step under way is finished and saved. Outside of them (data, building,
saving the model) there is no step to finish, and the request is answered at once.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType
from typing import Any

import torch
from lightning import Trainer

CLUSTER = (signal.SIGTERM, signal.SIGUSR1)
"""What a cluster sends before it takes a machine away; SLURM's `--signal` chooses the second one."""


class Preempted(BaseException):
    """The cluster asked for the machine; like KeyboardInterrupt no Exception, so that nothing handles it by mistake."""


class Stop(IntEnum):
    """Who asked; of two the larger one counts."""

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

    def agreed(self, trainer: Trainer) -> Stop:
        """The request of all ranks, which must all ask at the same step."""
        if trainer.world_size == 1:
            return self.requested
        mine = torch.tensor(int(self.requested), device=trainer.strategy.root_device)
        return Stop(int(trainer.strategy.reduce(mine, reduce_op="max")))

    def _person_asks(self, signum: int, frame: FrameType | None) -> None:
        if self.requested is Stop.PERSON:
            self._restore()
            raise KeyboardInterrupt
        self.requested = Stop.PERSON

    def _cluster_asks(self, signum: int, frame: FrameType | None) -> None:
        self.requested = max(self.requested, Stop.CLUSTER)

    def _restore(self) -> None:
        _set(self._before)


@contextmanager
def preemptible() -> Iterator[None]:
    """SIGTERM and SIGUSR1 raise Preempted."""
    before: dict[int, Any] = {number: signal.getsignal(number) for number in CLUSTER}
    _set(dict.fromkeys(CLUSTER, _preempt))
    try:
        yield
    finally:
        _set(before)


def _preempt(signum: int, frame: FrameType | None) -> None:
    raise Preempted


def _set(handlers: dict[int, Any]) -> None:
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler)
