"""Sharding with FSDP2: each rank holds a shard of every parameter, and gathers one block at a time to compute."""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torchmetrics import Metric

from fvl_lightning.core.device import COMPUTE_PRECISIONS
from fvl_lightning.core.experiment import TrainerConfig
from fvl_lightning.training.checkpointing.sharded import ShardedTensor, rows_between, whole


class ShardedModel:
    """A model whose parameters are sharded over the ranks of `mesh`.

    Rank 0 brings the whole model, all other ranks one on the meta device. No device ever holds the whole model, since
    each rank allocates only its own shards.

    Args:
        model: the model, which is sharded in place.
        blocks, tables: see `shard`.
        mesh: the device mesh; parameters are sharded over its last dimension.
        device: the device that computes.
        settings: whether blocks are freed after their forward pass, the precision, and whether shards and optimiser
            state stay in main memory, from where a unit is copied to the device to compute.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Iterable[nn.Module],
        tables: Iterable[nn.Module],
        mesh: DeviceMesh,
        device: torch.device,
        settings: TrainerConfig,
    ) -> None:
        self.model, self._reshard = model, settings.reshard_after_forward
        self._tables: list[Any] = list(tables)
        first = distributed.get_rank() == 0
        state = model.state_dict() if first else {}
        computed = _computed_buffers(model)
        _replace(model, model, lambda tensor: torch.empty_like(tensor, device="meta"))
        self._plain = copy.deepcopy(model)
        """The whole model on the meta device, to gather into."""
        shard(model, blocks, self._tables, mesh, settings)
        model.to_empty(device="cpu" if settings.cpu_offload else device)
        set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
        for name, values in computed.items():
            buffer = model.get_buffer(name)
            if first:
                buffer.copy_(values)
            distributed.broadcast(buffer, 0)
        if settings.cpu_offload:
            move_buffers(model, device)

    @contextmanager
    def gathered_root(self) -> Iterator[None]:
        """Keeps what is outside of the blocks gathered; all ranks must enter and leave together.

        Parts of the model can then be called by themselves, and generation can read the embeddings. All ranks must make
        the same calls, since each block is gathered where it computes.
        """
        root: Any = self.model
        root._get_fsdp_state()._lazy_init()  # otherwise a part that is called first would take itself for the root
        kept: list[Any] = [root, *self._tables]
        for unit in kept:
            unit.unshard()
            unit.set_reshard_after_forward(False, recurse=False)
        try:
            yield
        finally:
            for table in self._tables:
                table.set_reshard_after_forward(self._reshard, recurse=False)
            for unit in kept:
                unit.reshard()

    def reshard(self) -> None:
        """Frees what a forward pass without a backward pass has left gathered."""
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def gather(self) -> nn.Module | None:
        """Returns the whole model on the CPU of rank 0, and None on the other ranks; all ranks must call it."""
        first = distributed.get_rank() == 0
        self.reshard()
        _replace(self.model, self._plain, _gather_to_cpu if first else _gather_to_meta)
        return self._plain if first else None


def shard(
    model: nn.Module,
    blocks: Iterable[nn.Module],
    tables: Iterable[nn.Module],
    mesh: DeviceMesh,
    settings: TrainerConfig,
) -> None:
    """Shards a model in place: each block and table is gathered where it computes, all other parameters as one unit.

    That unit (norms, head, fusion, projector) is needed at the beginning and at the end of a forward pass and at once
    in the backward pass, so that it stays gathered from the one to the other. A table is not gathered for its gradient.

    With `precision: bf16-mixed` parameters are gathered in bfloat16; shards, their gradients, and the sums of gradients
    over the ranks are float32. Autocast stays on: it computes statistics of norms, and whatever else a component
    asks for, in float32, and finds the weights in bfloat16 already. The gathered vectors (norms, biases, gates) are
    bfloat16 too, as in torchtitan, but a norm's statistics and the loss are float32.

    Args:
        model: the model; its shards are on its own device, or in main memory.
        blocks: the repeated modules.
        tables: embeddings that nothing else reads.
        mesh: the device mesh; parameters are sharded over its last dimension.
        settings: `reshard_after_forward`, `precision` and `cpu_offload`.
    """
    dtype, reshard = COMPUTE_PRECISIONS[settings.precision], settings.reshard_after_forward
    how: dict[str, Any] = {"mesh": mesh, "mp_policy": MixedPrecisionPolicy()}
    if dtype is not None:
        how["mp_policy"] = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
    if settings.cpu_offload:
        how["offload_policy"] = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda")
    for unit in [*blocks, *tables]:
        fully_shard(unit, reshard_after_forward=reshard, **how)
    for table in tables:
        assert isinstance(table, FSDPModule)
        table.set_unshard_in_backward(False)
    if dtype is not None:  # such as cached features and pixels, which the root's norms and convolutions read
        how["mp_policy"] = MixedPrecisionPolicy(dtype, torch.float32)
    fully_shard(model, reshard_after_forward=False, **how)


def gather_tensor(tensor: Tensor) -> Tensor:
    """Returns the whole of a sharded tensor on the CPU, any other tensor as it is; all ranks must call it."""
    return tensor.full_tensor().detach().cpu() if isinstance(tensor, DTensor) else tensor


def local_shard(tensor: Tensor) -> Tensor:
    """Returns the shard that this rank holds, without a copy; a tensor that is not sharded as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def rows_to_write(tensor: DTensor) -> tuple[int, Tensor] | None:
    """Returns the index of the first local row and the local rows; None if there are none, or a replica has them."""
    coordinate = tensor.device_mesh.get_coordinate()
    assert coordinate is not None
    replica = (at for at, placement in zip(coordinate, tensor.placements, strict=True) if placement == Replicate())
    first, count = _local_rows(tensor)
    return None if any(replica) or not count else (first, local_shard(tensor).detach())


def local_rows(value: Tensor | ShardedTensor, like: Tensor) -> Tensor:
    """Returns the rows of a checkpoint's tensor that this rank holds if it is sharded as `like` is."""
    if not isinstance(like, DTensor):
        return whole(value)
    first, count = _local_rows(like)
    return rows_between(value, first, first + count)


def distribute_rows_like(value: Tensor | ShardedTensor, like: Tensor) -> Tensor:
    """Returns a copy of a checkpoint's tensor on the device of `like`, and sharded as `like` is.

    A tensor of another shape, such as a step count, is returned whole.
    """
    if not isinstance(like, DTensor) or (isinstance(value, Tensor) and value.shape != like.shape):
        return whole(value)
    rows = local_rows(value, like).to(local_shard(like).device, copy=True)
    return DTensor.from_local(rows, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())


def make_room(model: nn.Module, device: torch.device) -> None:
    """Moves a model to `device`, where ranks that have it without values get memory for them; all ranks must call it.

    They have the buffers of rank 0 afterwards. DDP sends the parameters when it begins.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        _replace(model, model, lambda tensor: torch.empty_like(tensor, device=device))
    model.to(device)
    for buffer in model.buffers():
        distributed.broadcast(buffer, 0)


def move_buffers(module: nn.Module, device: torch.device) -> None:
    """Moves buffers, and the state of metrics, to `device`; parameters stay where they are."""
    for child in module.modules():
        if isinstance(child, Metric):
            child.to(device)
        for name, buffer in child._buffers.items():
            if buffer is not None:
                child._buffers[name] = buffer.to(device)


def _local_rows(tensor: DTensor) -> tuple[int, int]:
    """Returns the index of the first local row and the number of local rows."""
    assert all(placement in (Replicate(), Shard(0)) for placement in tensor.placements), "not sharded by rows"
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return offset[0], shape[0]


def _gather_to_cpu(tensor: Tensor) -> Tensor:
    return gather_tensor(tensor).cpu()


def _gather_to_meta(tensor: Tensor) -> Tensor:
    return gather_tensor(tensor).to("meta")


def _computed_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Returns the buffers that are in no state dict."""
    saved = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name not in saved}


@torch.no_grad()
def _replace(source: nn.Module, target: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Gives `target` the changed parameters and buffers of `source`, which is built alike; tied tensors stay tied."""
    made: dict[Tensor, Any] = {}
    for old, new in zip(source.modules(), target.modules(), strict=True):
        for name, parameter in list(old._parameters.items()):
            if parameter is not None:
                if parameter not in made:
                    made[parameter] = nn.Parameter(change(parameter), requires_grad=parameter.requires_grad)
                new._parameters[name] = made[parameter]
        for name, buffer in list(old._buffers.items()):
            if buffer is not None:
                new._buffers[name] = made.setdefault(buffer, change(buffer))
