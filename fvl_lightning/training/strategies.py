"""Lightning's strategies behind `trainer.strategy`, and a checkpoint that is the same file under each of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.optim import Optimizer

from fvl_lightning.core.experiment import TrainerConfig
from fvl_lightning.training.sharding import gathered, local, placed


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2, over all ranks or over those of each of `replicas` groups.

    A checkpoint is gathered on rank 0, into the file that one process writes. So it is checked and kept like any other,
    and goes on under any strategy and on any number of ranks. Where it is read each rank takes its parts out of the
    file, which is mapped rather than loaded.
    """

    def __init__(self, world_size: int, replicas: int = 1) -> None:
        super().__init__(world_size, 1, save_distributed_checkpoint=False)
        self.replicas = replicas

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

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """In parts; the stage gathers what it keeps."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Gathered; without values on all ranks but the first."""
        state = optimizer.state_dict()
        whole: dict[int, dict[str, Tensor]] = {}
        for number, values in state["state"].items():
            every = {name: gathered(value) for name, value in values.items()}
            whole[number] = every if self.is_global_zero else {}
        return {**state, "state": whole}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Rank 0 writes."""
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """The file, mapped."""
        return torch.load(Path(checkpoint_path), map_location="cpu", mmap=True, weights_only=True)

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Copies this rank's parts; the stage has checked the names."""
        ours = self.lightning_module_state_dict()
        for name, whole in checkpoint["state_dict"].items():
            local(ours[name]).copy_(local(placed(whole, ours[name])))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Gives each optimiser this rank's parts of its state."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            parts = {
                number: {
                    name: placed(value, parameters[number]) if value.shape == parameters[number].shape else value
                    for name, value in values.items()
                }
                for number, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": parts})


def build_strategy(config: TrainerConfig) -> Strategy | str:
    """What Lightning's Trainer takes for `config.strategy`."""
    if config.sharded:
        return ShardedStrategy(config.world_size, config.nodes if config.strategy == "hsdp" else 1)
    if config.strategy == "ddp":
        # A source that no loss reads leaves its parameters without a gradient; all buffers are constants.
        return DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)
    return "auto"
