"""Updates over the shards that a rank holds.

torch computes on sharded tensors (DTensor) one by one, hundreds of microseconds of the host for each. Clipping and
AdamW take all shards of a rank together instead. What is saved stays sharded tensors, as with torch's AdamW.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

from fvl_lightning.training.distributed.fsdp import local_shard


class LocalAdamW(torch.optim.AdamW):
    """AdamW over the local shards of parameters, in one fused kernel per group where the device has it.

    A fused update needs no temporary tensors. It differs from torch's loop over parameters by rounding.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], **defaults: Any) -> None:
        super().__init__(groups, **defaults)
        for group in self.param_groups:
            group["fused"] = _have_fused_kernels(group["params"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state; the kernels remain those of this device, whichever the state comes from."""
        saved = state_dict["param_groups"]
        kernels = [{"foreach": group["foreach"], "fused": group["fused"]} for group in self.param_groups]
        groups = [{**group, **own} for group, own in zip(saved, kernels, strict=True)]
        super().load_state_dict({**state_dict, "param_groups": groups})

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> bool:
        """Fills the lists of parameters, gradients, moments and steps, from which torch computes the update."""
        is_complex = super()._init_group(group, *lists)
        for tensors in lists:
            tensors[:] = map(local_shard, tensors)
        return is_complex


@torch.no_grad()
def scale_gradients(parameters: Iterable[Tensor], factor: Tensor) -> None:
    """Multiplies the gradients by a scalar."""
    gradients = _gradients(parameters)
    torch._foreach_mul_(gradients, factor.to(gradients[0].device))


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], limit: float | None) -> Tensor:
    """Scales the gradients so that their norm over all shards is at most `limit`; returns the norm before, a scalar.

    All ranks must call it: they add up the squares of the norms of their shards in one exchange.
    """
    parameters, limit = list(parameters), float("inf") if limit is None else limit
    mesh = next((parameter.device_mesh for parameter in parameters if isinstance(parameter, DTensor)), None)
    if mesh is None:
        return nn.utils.clip_grad_norm_(parameters, limit)
    gradients = _gradients(parameters)
    squares = nn.utils.get_total_norm(gradients).square()
    distributed.all_reduce(squares, group=mesh.get_group(mesh.ndim - 1))
    norm = squares.sqrt()
    torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def _gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [local_shard(parameter.grad) for parameter in parameters if parameter.grad is not None]


def _have_fused_kernels(parameters: Iterable[Tensor]) -> bool:
    devices = _get_fused_kernels_supported_devices()
    return all(parameter.is_floating_point() and parameter.device.type in devices for parameter in parameters)
