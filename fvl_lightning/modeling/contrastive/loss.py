"""The contrastive loss of images and captions within groups of N pairs, in one direction.

For image i of a group, with vectors v and t of length 1 and the temperature T, it is

    -ln(exp(v_i t_i / T) / sum_j exp(v_i t_j / T)),    j over the N captions of the group.

The paper sums over the images of a batch and names no temperature, which is T = 1. Groups go on from rank to rank, so
that N does not depend on the number of ranks.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable


class ContrastiveLoss(NamedTuple):
    """The loss of this rank's images.

    Attributes:
        sum: the sum of their losses, a scalar with gradient.
        pairs: how many they are, int64.
        correct: for how many the own caption is the most similar one of the group, int64.
        captions: the sum over the images of the number of captions that each is compared with.
    """

    sum: Tensor
    pairs: Tensor
    correct: Tensor
    captions: Tensor


def contrastive_loss(images: Tensor, captions: Tensor, temperature: float, group: int) -> ContrastiveLoss:
    """Returns the loss of image i to caption i; the captions of all ranks form groups of `group` pairs in their order.

    With several ranks, each of them must call it. The last group is smaller where the pairs are no multiple.

    Args:
        images: [M, D] of length 1, float32 at least.
        captions: [M, D] of length 1, in the order of the images.
        temperature: divides the similarities.
        group: N.
    """
    everywhere, first = gather_rows(captions)
    own = torch.arange(first, first + len(images), device=images.device)
    if not len(images):
        zero = own.new_zeros(())
        # The other ranks' gradients of captions come through this one too, which takes part in their sum.
        return ContrastiveLoss(images.sum() + 0 * everywhere.sum(), zero, zero, zero)
    with torch.autocast(images.device.type, enabled=False):
        scores = images @ everywhere.to(images.dtype).T / temperature
    same = own[:, None] // group == torch.arange(len(everywhere), device=own.device) // group
    scores = scores.masked_fill(~same, float("-inf"))
    total = (scores.logsumexp(1) - scores.gather(1, own[:, None]).squeeze(1)).sum()
    correct = (scores.detach().argmax(1) == own).sum()
    return ContrastiveLoss(total, own.new_tensor(len(own)), correct, same.sum())


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """Returns the rows [M, D] of all ranks in the order of the ranks, and the index of this rank's first row.

    The gradient of a row is the sum of those of all ranks. Ranks may have different numbers of rows.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return rows, 0
    counts = [torch.zeros((), dtype=torch.long, device=rows.device) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, torch.tensor(len(rows), device=rows.device))
    sizes = [int(count) for count in counts]
    padded = rows.new_zeros(max(sizes), rows.shape[1]).index_copy(0, torch.arange(len(rows), device=rows.device), rows)
    gathered = _GatherRows.apply(padded)
    parts = [part[:size] for part, size in zip(gathered, sizes, strict=True)]
    return torch.cat(parts), sum(sizes[: distributed.get_rank()])


class _GatherRows(torch.autograd.Function):
    """Gathers tensors of one shape from all ranks; the backward pass sums their gradients over the ranks."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        """Returns [ranks, P, D] for [P, D]."""
        parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, rows.contiguous())
        return torch.stack(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Returns this rank's part of the gradient, summed over the ranks."""
        gradient = gradient.contiguous()
        distributed.all_reduce(gradient)
        return gradient[distributed.get_rank()]
