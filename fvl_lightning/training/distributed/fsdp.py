"""Sharding with FSDP2: each rank holds a part of every parameter, and gathers a block while it computes with it."""

import copy
from collections.abc import Callable, Iterable
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


class Sharded:
    """A model whose parameters have been split over the ranks of `mesh`.

    Rank 0 comes with the whole model, all others with one on the meta device; each block is made on every rank as the
    part that it will hold, so that no device ever holds a whole model. With `offload` the parts and what the optimiser
    keeps of them are in main memory; a block's are copied to the device while it computes.
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
        self.model = model
        first = distributed.get_rank() == 0
        state = model.state_dict() if first else {}
        computed = _computed_buffers(model)
        _replace(model, model, lambda tensor: torch.empty_like(tensor, device="meta"))
        self._plain = copy.deepcopy(model)
        """The whole model without values, for the end."""
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

    def gather(self) -> nn.Module | None:
        """The whole model as it is now, on rank 0's CPU; None on the others, which take part."""
        first = distributed.get_rank() == 0
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # what the last forward pass has left gathered
        _replace(self.model, self._plain, _kept if first else _dropped)
        return self._plain if first else None


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor on the CPU; any other as it is. All ranks must ask."""
    return tensor.full_tensor().detach().cpu() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered_parts(part: Tensor, like: Tensor) -> Tensor:
    """The whole tensor of which each rank holds a part, split as `like` is. All ranks must ask."""
    assert isinstance(like, DTensor)
    split = DTensor.from_local(part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())
    return split.full_tensor()


def distribute_like(value: Tensor, like: Tensor) -> Tensor:
    """`value`, which every rank has, as `like` is: its device, and sharded where it is."""
    value = value.to(like.device)
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def rows_to_write(tensor: DTensor) -> tuple[int, Tensor] | None:
    """The first row and the rows that this rank holds; None where there are none, or another rank has the same."""
    coordinate = tensor.device_mesh.get_coordinate()
    assert coordinate is not None
    copies = (at for at, placement in zip(coordinate, tensor.placements, strict=True) if placement == Replicate())
    first, count = _held(tensor)
    return None if any(copies) or not count else (first, local(tensor).detach())


def held_rows(value: Tensor | ShardedTensor, like: Tensor) -> Tensor:
    """What this rank holds of a checkpoint's tensor, where it is sharded as `like` is."""
    if not isinstance(like, DTensor):
        return whole(value)
    first, count = _held(like)
    return rows_between(value, first, first + count)


def distribute_rows_like(value: Tensor | ShardedTensor, like: Tensor) -> Tensor:
    """A copy of a checkpoint's tensor as `like` is, where it has its shape: on its device, and sharded where it is."""
    if not isinstance(like, DTensor) or (isinstance(value, Tensor) and value.shape != like.shape):
        return whole(value)
    rows = held_rows(value, like).to(local(like).device, copy=True)
    return DTensor.from_local(rows, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())


def move_buffers(module: nn.Module, device: torch.device) -> None:
    """Buffers, and the state of metrics, to `device`; parameters stay where they are."""
    for child in module.modules():
        if isinstance(child, Metric):
            child.to(device)
        for name, buffer in child._buffers.items():
            if buffer is not None:
                child._buffers[name] = buffer.to(device)


def _held(tensor: DTensor) -> tuple[int, int]:
    """First row and number of rows of this rank's part."""
    assert all(placement in (Replicate(), Shard(0)) for placement in tensor.placements), "split by other than rows"
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return offset[0], shape[0]


def _kept(tensor: Tensor) -> Tensor:
    return gathered(tensor).cpu()


def _dropped(tensor: Tensor) -> Tensor:
    return gathered(tensor).to("meta")


def _computed_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Buffers that no state holds."""
    saved = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name not in saved}


@torch.no_grad()
def _replace(source: nn.Module, target: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Gives `target`, built like `source`, the changed parameters and buffers of it; what is tied stays tied."""
    made: dict[Tensor, Any] = {}
    for ours, theirs in zip(source.modules(), target.modules(), strict=True):
        for name, parameter in list(ours._parameters.items()):
            if parameter is not None:
                if parameter not in made:
                    made[parameter] = nn.Parameter(change(parameter), requires_grad=parameter.requires_grad)
                theirs._parameters[name] = made[parameter]
        for name, buffer in list(ours._buffers.items()):
            if buffer is not None:
                theirs._buffers[name] = made.setdefault(buffer, change(buffer))
