"""The Lightning strategies of `trainer.strategy`; each of them resumes the checkpoints of the others."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from fvl_lightning.core.experiment import TrainerConfig
from fvl_lightning.training.checkpointing.last_and_previous import CheckpointFiles, read_checkpoint
from fvl_lightning.training.checkpointing.sharded import copied, put, split
from fvl_lightning.training.distributed.fsdp import (
    distribute_rows_like,
    gather_tensor,
    local_rows,
    local_shard,
    move_buffers,
    rows_to_write,
)


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all ranks, or within each of several groups of ranks that are replicas of each other (HSDP).

    Either every rank writes its own part of a checkpoint, or rank 0 gathers it tensor by tensor into one file. Both
    resume under any strategy and on any number of ranks: each rank reads its rows from the memory-mapped files.

    Args:
        world_size: the number of ranks.
        replicas: the number of groups, each of which holds the whole model.
        in_parts: whether every rank writes its own part of a checkpoint.
        offload: whether shards and optimiser state stay in main memory.
    """

    def __init__(self, world_size: int, replicas: int = 1, in_parts: bool = True, offload: bool = False) -> None:
        super().__init__(world_size, 1, save_distributed_checkpoint=False)
        self.replicas, self.in_parts, self.offload = replicas, in_parts, offload

    @property
    def mesh(self) -> DeviceMesh:
        """The device mesh; parameters are sharded over its last dimension."""
        if self.replicas == 1:
            return self.device_mesh["data_parallel"]
        shape = (self.replicas, self.world_size // self.replicas)
        return init_device_mesh(self.root_device.type, shape, mesh_dim_names=("replicas", "parts"))

    @property
    def lightning_restore_optimizer(self) -> bool:
        """True: Lightning restores the optimiser state, as it does without sharding."""
        return True

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Leaves the sum over the replicas to the last of several accumulated batches; shards are summed in each.

        Every batch has a gradient for the same parameters (see `embed_images`), so that none is left out of the sum.
        """
        assert self.lightning_module is not None
        units = [module for module in self.lightning_module.modules() if isinstance(module, FSDPModule)]
        for unit in units:
            unit.set_requires_all_reduce(False, recurse=False)
        try:
            yield
        finally:
            for unit in units:
                unit.set_requires_all_reduce(True, recurse=False)

    def model_to_device(self) -> None:
        """Moves the module to the device; offloaded parameters stay in main memory."""
        if not self.offload:
            super().model_to_device()
            return
        assert self.lightning_module is not None
        move_buffers(self.lightning_module, self.root_device)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Returns the local state; the stage selects which tensors are saved."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Returns the local state of an optimiser."""
        return optimizer.state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Writes the part of this rank, or all of it on rank 0."""
        path, files = Path(self.broadcast(filepath)), self.checkpoint_io
        assert isinstance(files, CheckpointFiles)
        common, sharded = split(checkpoint)
        common = copied(common) if files.background else common
        if self.in_parts:
            rows = {place: part for place, tensor in sharded.items() if (part := rows_to_write(tensor))}
            files.save_parts(common, copied(rows) if files.background else rows, path)
            return
        for place, tensor in sharded.items():
            whole = gather_tensor(tensor)
            if self.is_global_zero:
                put(common, place, whole)
        if self.is_global_zero:
            files.save_whole(common, path)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a checkpoint file or folder, memory-mapped."""
        return read_checkpoint(Path(checkpoint_path))

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Copies the rows of this rank; the stage has checked the names."""
        state = self.lightning_module_state_dict()
        for name, value in checkpoint["state_dict"].items():
            local_shard(state[name]).copy_(local_rows(value, state[name]))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Loads the rows of this rank into each optimiser."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            local_state = {
                number: {name: distribute_rows_like(value, parameters[number]) for name, value in values.items()}
                for number, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": local_state})


def build_strategy(config: TrainerConfig) -> Strategy | str:
    """Returns the argument for Lightning's Trainer that stands for `config.strategy`."""
    if config.sharded:
        replicas = config.nodes if config.strategy == "hsdp" else 1
        return ShardedStrategy(config.world_size, replicas, config.checkpoint != "whole", config.cpu_offload)
    if config.strategy == "ddp":
        # A source that contributes to no loss leaves its parameters without a gradient; all buffers are constants.
        return DDPStrategy(find_unused_parameters=True, broadcast_buffers=False, gradient_as_bucket_view=True)
    return "auto"
