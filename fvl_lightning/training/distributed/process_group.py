"""The processes of one training: who they are, and how the first of them speaks for all.

Each is started by torchrun, or by anything that sets the same variables; a single process needs none of them.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import TrainerConfig
from fvl_lightning.core.terminal import started_ranks
from fvl_lightning.training.fault_tolerance.hang_detection import PeerError, PeerFailedError
from fvl_lightning.training.fault_tolerance.heartbeat import Heartbeat, HeartbeatCallback
from fvl_lightning.training.fault_tolerance.signals import Preempted, ended_at_once

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(days=2)
"""How long ranks wait for each other where a heartbeat, or a person, says when it is too long."""


@dataclass(frozen=True)
class Ranks:
    """This process among all of the training."""

    rank: int = 0
    world_size: int = 1
    group: Any = None
    """Of torch.distributed, for the waiting before and after the steps."""
    heartbeat: Heartbeat | None = None
    """Where there are others, unless the experiment wants none."""

    @property
    def first(self) -> bool:
        """Whether this one speaks, writes and tracks for all."""
        return self.rank == 0

    def broadcast_from_rank0(self, do: Callable[[], T]) -> T:
        """Runs `do` on the first rank alone; all get what it returned, which must be picklable.

        Raises:
            PeerFailedError: on all others, where it failed.
        """
        if self.world_size == 1:
            return do()
        told: list[Any] = [None, False]
        try:
            if self.first:
                told = [do(), True]
        except BaseException:
            with suppress(RuntimeError):  # the others may be gone; what has happened here says more
                distributed.broadcast_object_list(told, 0, self.group)
            raise
        distributed.broadcast_object_list(told, 0, self.group)
        if not told[1]:
            raise PeerFailedError("the first rank has failed")
        return told[0]

    def rank0_first(self, do: Callable[[], T]) -> T:
        """Runs `do` on the first rank, and when it is done on all others, which find the files it has left."""
        if self.world_size == 1:
            return do()
        mine: list[T] = []
        self.broadcast_from_rank0(lambda: mine.append(do()))
        return mine[0] if self.first else do()

    def beats(self) -> HeartbeatCallback:
        """The trainer's callback that tells the other ranks where this one is."""
        return HeartbeatCallback(self.heartbeat.at if self.heartbeat else lambda place: None)

    def explain_errors(self, on_trouble: Callable[[PeerError], None]) -> AbstractContextManager[None]:
        """An error that only comes of another rank's end is told as that (see Heartbeat.explain_errors).

        Args:
            on_trouble: on the first rank, writes down why the training ends; it may be called from another thread.
        """
        if self.heartbeat is None:
            return nullcontext()
        if self.first:
            self.heartbeat.on_trouble = on_trouble
        return self.heartbeat.explain_errors()


@contextmanager
def init_process_group(config: TrainerConfig) -> Iterator[Ranks]:
    """All processes of the training, once each of them has come here.

    Raises:
        ConfigError: as many were started as the experiment does not speak of.
    """
    if started_ranks() != config.world_size:
        raise ConfigError(
            f"trainer.devices: the experiment is for {config.devices} x {config.nodes} devices (trainer.devices x "
            f"trainer.nodes), but {started_ranks()} processes were started; set them, or start it as `fvl launch "
            f"EXPERIMENT.yaml --nodes {config.nodes} --gpus-per-node {config.devices}`"
        )
    if config.strategy == "single":
        yield Ranks()
        return
    cuda = config.accelerator in ("auto", "cuda") and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    where: dict[str, Any] = {"store": distributed.HashStore(), "rank": 0, "world_size": 1}
    heartbeat = None
    meeting = ExitStack()
    if config.world_size > 1:
        meeting.enter_context(ended_at_once())
        store, rank, world_size = next(distributed.rendezvous("env://"))
        where = {"store": store, "rank": rank, "world_size": world_size}
        if config.stall_seconds:
            heartbeat = Heartbeat(rank, world_size, distributed.PrefixStore("heartbeat", store), config.stall_seconds)
            where["timeout"] = COLLECTIVE_TIMEOUT
    together = False
    try:
        with meeting, heartbeat.explain_errors() if heartbeat else nullcontext():
            distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", **where)
            group = distributed.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
            meeting.close()
            yield Ranks(where["rank"], config.world_size, group, heartbeat)
        together = True
    except (KeyboardInterrupt, Preempted):
        together = True
        raise
    finally:
        if heartbeat:
            heartbeat.stop()
        # After an error other ranks may be waiting, and on GPUs leaving the group would wait for them; with gloo it
        # does not, and a process that ends without leaving may abort.
        if distributed.is_initialized() and (together or not cuda):
            distributed.destroy_process_group()
