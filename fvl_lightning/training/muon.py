"""Muon for hidden matrices, AdamW for everything else."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from fvl_lightning.training.distributed.fsdp import local_shard
from fvl_lightning.training.distributed.local_updates import LocalAdamW
from fvl_lightning.training.distributed.owners import Owners

MUON_MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration (Jordan et al. 2024, "Muon"), as in torch.optim.Muon."""
NEWTON_SCHULZ_STEPS = 5
MAX_GATHERED_ELEMENTS = 2**26
"""The number of elements of whole matrices that a rank holds at a time: 256 MiB in float32."""


class MuonAdamW(LocalAdamW):
    """AdamW, except that groups with `muon=True` take orthogonalised momentum steps.

    The update of a matrix is the semi-orthogonal matrix nearest to its momentum (see `orthogonalize`). A scale of
    0.2 * sqrt(max(rows, columns)) matches its size to AdamW's, so that one learning rate serves both (arXiv 2502.16982,
    section 2.2).
    """

    def __init__(self, groups: Iterable[dict[str, Any]], **defaults: Any) -> None:
        super().__init__(groups, **defaults)
        for group in self.param_groups:
            group.setdefault("muon", False)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Makes one update; `closure`, as in torch's optimisers, re-evaluates the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        every_group = self.param_groups
        for group in every_group:
            if group["muon"]:
                self._muon_step(group)
        self.param_groups = [group for group in every_group if not group["muon"]]
        try:
            super().step()
        finally:
            self.param_groups = every_group
        return loss

    def _muon_step(self, group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape.setdefault(parameter.shape, []).append(parameter)
        for shape, parameters in by_shape.items():
            gradients = [local_shard(parameter.grad) for parameter in parameters if parameter.grad is not None]
            momenta = [local_shard(self._momentum(parameter)) for parameter in parameters]
            torch._foreach_lerp_(momenta, gradients, 1 - MUON_MOMENTUM)
            nesterov = torch._foreach_lerp(gradients, momenta, MUON_MOMENTUM)
            updates = orthogonal_updates(nesterov, parameters)
            rate, values = group["lr"], [local_shard(parameter) for parameter in parameters]
            torch._foreach_mul_(values, 1 - rate * group["weight_decay"])
            torch._foreach_add_(values, updates, alpha=-rate * 0.2 * math.sqrt(max(shape)))

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
            state["step"] = torch.zeros(())  # AdamW expects it in every state it loads
        return state["momentum"]


def orthogonal_updates(shards: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
    """Orthogonalises matrices of one shape, and returns the shards of the results that this rank holds.

    The orthogonal factor of a matrix does not consist of those of its shards. The ranks therefore share the matrices:
    each of them receives whole ones, and sends back the rows of the results. So the update is that of one process.

    Args:
        shards: the local shards of the matrices.
        parameters: the parameters of these matrices, which say how they are sharded.
    """
    # Matrices of one shape go through the iteration together, since launch overhead dominates for small ones.
    like = parameters[0]
    if not isinstance(like, DTensor):
        return list(orthogonalize(torch.stack(list(shards))).unbind(0))
    owners = Owners(like)
    at_once = owners.ranks * max(1, MAX_GATHERED_ELEMENTS // like.numel())
    updates: list[Tensor] = []
    for start in range(0, len(shards), at_once):
        some = shards[start : start + at_once]
        matrices = owners.gather([shard.to(_iteration_dtype(shard)) for shard in some])
        updates += owners.scatter(orthogonalize(matrices) if len(matrices) else matrices, len(some))
    return [update.to(shard.dtype) for update, shard in zip(updates, shards, strict=True)]


def orthogonalize(matrices: Tensor) -> Tensor:
    """Returns [M, R, C] matrices with singular values near 1, by Newton-Schulz iteration on [M, R, C].

    On a GPU it iterates in bfloat16, as torch.optim.Muon does, otherwise in the dtype of the matrices.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).to(_iteration_dtype(matrices))
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def _iteration_dtype(matrix: Tensor) -> torch.dtype:
    return torch.bfloat16 if matrix.is_cuda else matrix.dtype
