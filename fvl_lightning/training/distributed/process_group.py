"""The process group of a training, and what rank 0 does for all ranks.

torchrun starts the processes, or anything that sets the same environment variables; a single process needs none.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed, nn

from fvl_lightning.core.device import compute_device
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import TrainerConfig
from fvl_lightning.core.terminal import started_ranks
from fvl_lightning.training.fault_tolerance.hang_detection import PeerError, PeerFailedError, TrainingProgress
from fvl_lightning.training.fault_tolerance.heartbeat import Heartbeat, HeartbeatCallback
from fvl_lightning.training.fault_tolerance.signals import Preempted, ended_at_once

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(days=2)
"""The timeout of torch's collectives; the heartbeat ends a hang much earlier."""


@dataclass(frozen=True)
class Ranks:
    """The rank of this process, and what ranks do together."""

    rank: int = 0
    world_size: int = 1
    group: Any = None
    """A torch.distributed group for the objects that ranks exchange outside of the steps; None for one process."""
    heartbeat: Heartbeat | None = None
    """None for one process, and if `trainer.stall_seconds` is 0."""

    @property
    def first(self) -> bool:
        """Returns whether this is rank 0, which prints, writes and tracks for all."""
        return self.rank == 0

    def broadcast_from_rank0(self, do: Callable[[], T]) -> T:
        """Runs `do` on rank 0 and returns its result, which must be picklable, on all ranks.

        Raises:
            PeerFailedError: `do` failed; raised on all ranks but rank 0, which raises the error of `do`.
        """
        if self.world_size == 1:
            return do()
        payload: list[Any] = [None, False]
        try:
            if self.first:
                payload = [do(), True]
        except BaseException:
            with suppress(RuntimeError):  # the others may be gone; the error of rank 0 matters more
                distributed.broadcast_object_list(payload, 0, self.group)
            raise
        distributed.broadcast_object_list(payload, 0, self.group)
        if not payload[1]:
            raise PeerFailedError("rank 0 has failed")
        return payload[0]

    def gather(self, do: Callable[[], T]) -> list[T]:
        """Runs `do` on every rank and returns the results of all, which must be picklable, in the order of the ranks.

        A rank where it failed takes part in the exchange, for which the others may be waiting.

        Raises:
            PeerFailedError: `do` failed on another rank; the rank where it failed raises its error.
        """
        if self.world_size == 1:
            return [do()]
        results: list[Any] = [None] * self.world_size
        try:
            own = (do(), True)
        except BaseException:
            with suppress(RuntimeError):
                distributed.all_gather_object(results, (None, False), self.group)
            raise
        distributed.all_gather_object(results, own, self.group)
        if failed := [rank for rank, (_, succeeded) in enumerate(results) if not succeeded]:
            raise PeerFailedError(f"rank {failed[0]} has failed")
        return [result for result, _ in results]

    @contextmanager
    def replica(self, module: nn.Module, device: torch.device | None) -> Iterator[Any]:
        """Yields the module with the values that it has on rank 0, on a device, for computing without gradients.

        Args:
            module: the module, on the CPU; of ranks other than 0 it may have shapes without values. It is unchanged at
                the end.
            device: the device; None for that of the module.
        """
        home = next(module.parameters()).device
        if self.world_size == 1:
            try:
                yield module.to(device or home)
            finally:
                module.to(home)
            return
        replica = copy.deepcopy(module)
        if home.type == "meta":
            replica.to_empty(device="cpu")
        # Under each name of its own: tied tensors are no longer tied where they had no values.
        parameters = replica.named_parameters(remove_duplicate=False)
        for _, tensor in [*parameters, *replica.named_buffers(remove_duplicate=False)]:
            distributed.broadcast(tensor.detach(), 0, self.group)
        yield replica if device is None else replica.to(device)

    def on_rank0(self, do: Callable[[], T]) -> T | None:
        """Returns the result of `do` on rank 0; the other ranks wait for it, and return None."""
        results: list[T] = []
        self.broadcast_from_rank0(lambda: results.append(do()))
        return results[0] if results else None

    def rank0_first(self, do: Callable[[], T]) -> T:
        """Runs `do` on rank 0 and then on all other ranks, which find the files that rank 0 wrote."""
        if self.world_size == 1:
            return do()
        results: list[T] = []
        self.broadcast_from_rank0(lambda: results.append(do()))
        return results[0] if self.first else do()

    def heartbeat_callback(self) -> HeartbeatCallback:
        """Returns the callback that publishes the progress of this rank."""
        return HeartbeatCallback(self.heartbeat.report if self.heartbeat else lambda progress: None)

    def explain_errors(self, on_peer_error: Callable[[PeerError], None]) -> AbstractContextManager[None]:
        """Re-raises an error caused by a failed peer as a peer error (see Heartbeat.explain_errors).

        Args:
            on_peer_error: records, on rank 0, why the training ended; it may be called from another thread.
        """
        if self.heartbeat is None:
            return nullcontext()
        if self.first:
            self.heartbeat.on_peer_error = on_peer_error
        return self.heartbeat.explain_errors()


@contextmanager
def training_group(config: TrainerConfig, ranks: Ranks | None = None) -> Iterator[Ranks]:
    """Returns the ranks of a training: those of a group that was joined before, or those of one that is joined now.

    Args:
        config: the trainer of the training.
        ranks: the joined group; a single process has none, and joins one where the strategy needs it.

    Raises:
        See `init_process_group`.
    """
    if ranks is None or ranks.world_size == 1:
        with init_process_group(config) as ranks:
            yield ranks
        return
    if config.world_size != ranks.world_size:
        raise ConfigError(f"trainer.devices: {config.world_size} ranks in a group of {ranks.world_size}")
    if ranks.heartbeat:
        ranks.heartbeat.report(TrainingProgress())  # a training before this one had come further
    yield ranks
    if ranks.heartbeat:
        ranks.heartbeat.on_peer_error = lambda error: None  # the training has ended well, whatever follows


@contextmanager
def init_process_group(config: TrainerConfig) -> Iterator[Ranks]:
    """Joins the process group of the training, once all of its processes have started, and leaves it at the end.

    Raises:
        ConfigError: the number of processes differs from trainer.devices x trainer.nodes.
        LostRankError, PeerFailedError: see `Heartbeat.explain_errors`.
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
    device = compute_device(config.accelerator)
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    arguments: dict[str, Any] = {"store": distributed.HashStore(), "rank": 0, "world_size": 1}
    heartbeat = None
    rendezvous = ExitStack()
    if config.world_size > 1:
        rendezvous.enter_context(ended_at_once())
        store, rank, world_size = next(distributed.rendezvous("env://"))
        arguments = {"store": store, "rank": rank, "world_size": world_size}
        if config.stall_seconds:
            heartbeat = Heartbeat(rank, world_size, distributed.PrefixStore("heartbeat", store), config.stall_seconds)
            arguments["timeout"] = COLLECTIVE_TIMEOUT
    ended_together = False
    try:
        with rendezvous, heartbeat.explain_errors() if heartbeat else nullcontext():
            if cuda and config.strategy == "ddp":
                # NCCL then connects here and not in the first step. Not with a device mesh: torch would split its
                # groups from this one, gloo's part included, which crashes in a process that had a group before.
                arguments["device_id"] = device
            distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", **arguments)
            group = distributed.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
            rendezvous.close()
            yield Ranks(arguments["rank"], config.world_size, group, heartbeat)
        ended_together = True
    except (KeyboardInterrupt, Preempted):
        ended_together = True
        raise
    finally:
        if heartbeat:
            heartbeat.stop()
        # After an error, other ranks may still be in a collective: NCCL would wait for them. Gloo does not, and a
        # process that exits without destroying its group may abort.
        if distributed.is_initialized() and (ended_together or not cuda):
            distributed.destroy_process_group()
