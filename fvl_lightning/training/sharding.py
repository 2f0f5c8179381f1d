"""Sharding with FSDP2: each rank holds a part of every parameter, and gathers a block while it computes with it."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


class Sharded:
    """A model whose parameters have been split over the ranks of `mesh`.

    Rank 0 comes with the whole model, all others with one on the meta device; each block is made on every rank as the
    part that it will hold, so that no device ever holds a whole model.
    """

    def __init__(
        self, model: nn.Module, blocks: Iterable[nn.Module], mesh: DeviceMesh, device: torch.device, reshard: bool
    ) -> None:
        self.model = model
        first = distributed.get_rank() == 0
        state = model.state_dict() if first else {}
        computed = _computed_buffers(model)
        _replace(model, model, lambda tensor: torch.empty_like(tensor, device="meta"))
        self._plain = copy.deepcopy(model)
        """The whole model without values, for the end."""
        for block in blocks:
            fully_shard(block, mesh=mesh, reshard_after_forward=reshard)
        fully_shard(model, mesh=mesh, reshard_after_forward=reshard)
        model.to_empty(device=device)
        set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
        for name, values in computed.items():
            buffer = model.get_buffer(name)
            if first:
                buffer.copy_(values)
            distributed.broadcast(buffer, 0)

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


def placed(whole: Tensor, like: Tensor) -> Tensor:
    """`whole`, which every rank has, as `like` is: its device, and sharded where it is."""
    whole = whole.to(like.device)
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


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
