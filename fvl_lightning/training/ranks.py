"""The processes of one training: who they are, and how the first of them speaks for all.

Each is started by torchrun, or by anything that sets the same variables; a single process needs none of them.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from fvl_lightning.core.errors import ConfigError, UserError
from fvl_lightning.core.experiment import TrainerConfig
from fvl_lightning.training.stop import Preempted

T = TypeVar("T")

PATIENCE = timedelta(days=2)
"""How long ranks wait for what the first one prepares: shards, features, a large model."""


class ElsewhereError(UserError):
    """The first rank has failed, and says why itself."""


@dataclass(frozen=True)
class Ranks:
    """This process among all of the training."""

    rank: int = 0
    world_size: int = 1
    group: Any = None
    """Of torch.distributed, for the waiting before and after the steps."""

    @property
    def first(self) -> bool:
        """Whether this one speaks, writes and tracks for all."""
        return self.rank == 0

    def agree(self, do: Callable[[], T]) -> T:
        """Runs `do` on the first rank alone; all get what it returned, which must be picklable.

        Raises:
            ElsewhereError: on all others, where it failed.
        """
        if self.world_size == 1:
            return do()
        told: list[Any] = [None, False]
        if self.first:
            try:
                told = [do(), True]
            finally:
                distributed.broadcast_object_list(told, 0, self.group)
        else:
            distributed.broadcast_object_list(told, 0, self.group)
        if not told[1]:
            raise ElsewhereError("the first rank has failed")
        return told[0]

    def in_turn(self, do: Callable[[], T]) -> T:
        """Runs `do` on the first rank, and when it is done on all others, which find the files it has left."""
        if self.world_size == 1:
            return do()
        mine: list[T] = []
        self.agree(lambda: mine.append(do()))
        return mine[0] if self.first else do()


def own_rank() -> int:
    """The number of this process among those that were started together."""
    return int(os.environ.get("RANK", 0))


def started_ranks() -> int:
    """How many processes were started together."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def joined(config: TrainerConfig) -> Iterator[Ranks]:
    """All processes of the training, once each of them has come here.

    Raises:
        ConfigError: as many were started as the experiment does not speak of.
    """
    if started_ranks() != config.world_size:
        raise ConfigError(
            f"trainer.devices: the experiment is for {config.devices} x {config.nodes} devices (trainer.devices x "
            f"trainer.nodes), but {started_ranks()} processes were started; set them, or start it as `torchrun "
            f"--nnodes {config.nodes} --nproc-per-node {config.devices} -m fvl_lightning train ...`"
        )
    if config.strategy == "single":
        yield Ranks()
        return
    cuda = config.accelerator in ("auto", "cuda") and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    alone: dict[str, Any] = {}
    if config.world_size == 1:
        alone = {"store": distributed.HashStore(), "rank": 0, "world_size": 1}
    distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", **alone)
    group = distributed.new_group(backend="gloo", timeout=PATIENCE)
    together = False
    try:
        yield Ranks(distributed.get_rank(), config.world_size, group)
        together = True
    except (KeyboardInterrupt, Preempted):
        together = True
        raise
    finally:
        # After an error other ranks may be waiting, and on GPUs leaving the group would wait for them; with gloo it
        # does not, and a process that ends without leaving may abort.
        if together or not cuda:
            distributed.destroy_process_group()
