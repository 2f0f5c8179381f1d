"""Sharding with FSDP2: each rank holds a shard of every parameter, and gathers one block at a time to compute."""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torchmetrics import Metric

from fvl_lightning.training.checkpointing.sharded import ShardedTensor, rows_between, whole


class ShardedModel:
    """A model whose parameters are sharded over the ranks of `mesh`.

    Rank 0 brings the whole model, all other ranks one on the meta device. No device ever holds the whole model, since
    each rank allocates only its own shards.

    Args:
        model: the model, which is sharded in place.
        blocks: modules of it that are gathered one at a time; the rest is one more unit.
        mesh: the device mesh; parameters are sharded over its last dimension.
        device: the device that computes.
        reshard: whether to free a block after its forward pass and gather it again for the backward pass.
        offload: whether shards and optimiser state stay in main memory; a block is copied to the device to compute.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Iterable[nn.Module],
        mesh: DeviceMesh,
        device: torch.device,
        reshard: bool,
        offload: bool = False,
    ) -> None:
        self.model, self._reshard = model, reshard
        first = distributed.get_rank() == 0
        state = model.state_dict() if first else {}
        computed = _computed_buffers(model)
        _replace(model, model, lambda tensor: torch.empty_like(tensor, device="meta"))
        self._plain = copy.deepcopy(model)
        """The whole model on the meta device, to gather into."""
        policy = CPUOffloadPolicy(pin_memory=device.type == "cuda") if offload else OffloadPolicy()
        for block in blocks:
            fully_shard(block, mesh=mesh, reshard_after_forward=reshard, offload_policy=policy)
        fully_shard(model, mesh=mesh, reshard_after_forward=reshard, offload_policy=policy)
        model.to_empty(device="cpu" if offload else device)
        set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
        for name, values in computed.items():
            buffer = model.get_buffer(name)
            if first:
                buffer.copy_(values)
            distributed.broadcast(buffer, 0)
        if offload:
            move_buffers(model, device)

    @contextmanager
    def gathered_root(self) -> Iterator[None]:
        """Keeps what is outside of the blocks gathered; all ranks must enter and leave together.

        Parts of the model can then be called by themselves, and generation can read the embeddings. All ranks must make
        the same calls, since each block is gathered where it computes.
        """
        root: Any = self.model
        root._get_fsdp_state()._lazy_init()  # otherwise a part that is called first would take itself for the root
        root.unshard()
        root.set_reshard_after_forward(False, recurse=False)
        try:
            yield
        finally:
            root.set_reshard_after_forward(self._reshard, recurse=False)
            root.reshard()

    def gather(self) -> nn.Module | None:
        """Returns the whole model on the CPU of rank 0, and None on the other ranks; all ranks must call it."""
        first = distributed.get_rank() == 0
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # the last forward pass may have left it gathered
        _replace(self.model, self._plain, _gather_to_cpu if first else _gather_to_meta)
        return self._plain if first else None


def gather_tensor(tensor: Tensor) -> Tensor:
    """Returns the whole of a sharded tensor on the CPU, any other tensor as it is; all ranks must call it."""
    return tensor.full_tensor().detach().cpu() if isinstance(tensor, DTensor) else tensor


def local_shard(tensor: Tensor) -> Tensor:
    """Returns the shard that this rank holds, without a copy; a tensor that is not sharded as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gather_shards(shard: Tensor, like: Tensor) -> Tensor:
    """Returns the whole of a tensor whose shards lie on the ranks as those of `like` do; all ranks must call it."""
    assert isinstance(like, DTensor)
    sharded = DTensor.from_local(shard, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())
    return sharded.full_tensor()


def distribute_like(value: Tensor, like: Tensor) -> Tensor:
    """Returns `value`, which all ranks have, on the device of `like`, and sharded as `like` is."""
    value = value.to(like.device)
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


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
