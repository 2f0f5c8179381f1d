"""Lightning's strategies behind `trainer.strategy`, and checkpoints that go on under each of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.optim import Optimizer

from fvl_lightning.core.experiment import TrainerConfig
from fvl_lightning.training.checkpointing.files import CheckpointFiles, read_checkpoint
from fvl_lightning.training.checkpointing.sharded import copied, put, split
from fvl_lightning.training.distributed.fsdp import (
    distribute_rows_like,
    gathered,
    held_rows,
    local,
    move_buffers,
    rows_to_write,
)


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2, over all ranks or over those of each of `replicas` groups.

    A checkpoint is written in parts, each rank its own, or gathered tensor by tensor on rank 0, into one file. Either
    goes on under any strategy and on any number of ranks: each rank takes its rows out of the files, which are mapped
    rather than loaded.
    """

    def __init__(self, world_size: int, replicas: int = 1, in_parts: bool = True, offload: bool = False) -> None:
        super().__init__(world_size, 1, save_distributed_checkpoint=False)
        self.replicas, self.in_parts, self.offload = replicas, in_parts, offload

    @property
    def mesh(self) -> DeviceMesh:
        """Over whose last dimension parameters are split."""
        if self.replicas == 1:
            return self.device_mesh["data_parallel"]
        shape = (self.replicas, self.world_size // self.replicas)
        return init_device_mesh(self.root_device.type, shape, mesh_dim_names=("replicas", "parts"))

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning hands over the optimiser's state, as it does without sharding."""
        return True

    def model_to_device(self) -> None:
        """Parameters that are offloaded stay where they are."""
        if not self.offload:
            super().model_to_device()
            return
        assert self.lightning_module is not None
        move_buffers(self.lightning_module, self.root_device)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """In parts; the stage chooses what is kept."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """In parts."""
        return optimizer.state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Every rank writes its part, or rank 0 all."""
        path, files = Path(self.broadcast(filepath)), self.checkpoint_io
        assert isinstance(files, CheckpointFiles)
        common, sharded = split(checkpoint)
        common = copied(common) if files.background else common
        if self.in_parts:
            rows = {place: found for place, tensor in sharded.items() if (found := rows_to_write(tensor))}
            files.save_parts(common, copied(rows) if files.background else rows, path)
            return
        for place, tensor in sharded.items():
            whole = gathered(tensor)
            if self.is_global_zero:
                put(common, place, whole)
        if self.is_global_zero:
            files.save_whole(common, path)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """The file or the folder, mapped."""
        return read_checkpoint(Path(checkpoint_path))

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Copies this rank's parts; the stage has checked the names."""
        ours = self.lightning_module_state_dict()
        for name, value in checkpoint["state_dict"].items():
            local(ours[name]).copy_(held_rows(value, ours[name]))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Gives each optimiser this rank's parts of its state."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            parts = {
                number: {name: distribute_rows_like(value, parameters[number]) for name, value in values.items()}
                for number, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": parts})


def build_strategy(config: TrainerConfig) -> Strategy | str:
    """What Lightning's Trainer takes for `config.strategy`."""
    if config.sharded:
        replicas = config.nodes if config.strategy == "hsdp" else 1
        return ShardedStrategy(config.world_size, replicas, config.checkpoint != "whole", config.cpu_offload)
    if config.strategy == "ddp":
        # A source that no loss reads leaves its parameters without a gradient; all buffers are constants.
        return DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)
    return "auto"
