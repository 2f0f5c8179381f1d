"""Cross entropy over supervised positions; logits of other positions are not computed.

The forward pass computes the gradients too, chunk by chunk, so that no logits are kept and none are computed twice; the
backward pass multiplies them by the gradient of the sum. Liger's fused cross entropy (arXiv 2410.10989) does so for a
linear head; here a head may be anything that gives logits.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import log_softmax, nll_loss
from torch.utils.checkpoint import checkpoint

from fvl_lightning.core.types import IGNORE_INDEX

MAX_LOGIT_ELEMENTS = 2**25
"""The most logits held at a time, 128 MiB in float32; more rows go in chunks."""
ROW_TILE = 256
"""Chunks above this number of rows have a multiple of it, since matrix products of a GPU are computed in tiles."""

ACCUMULATION = "torch::autograd::AccumulateGrad"
"""The name of a node of autograd's graph that holds a leaf."""
GATHERED = "RegisterPostBackwardFunction"
"""How the name of the node begins that FSDP2 puts on the input of a module whose parameters it gathers."""
Head = Callable[[Tensor], Tensor]
"""Computes the logits [R, V] of hidden rows [R, D]."""
Chunks = list[tuple[Tensor, Tensor]]
"""Hidden rows [R, D] and their targets [R]."""


@dataclass
class TokenLoss:
    """The `sum` of cross entropies (float32 scalar with gradient), and the supervised and `correct` `tokens` (int64).

    A mixture adds `dataset_sums` (float32, no gradient) and `dataset_tokens` (int64), one number per dataset.
    """

    sum: Tensor
    tokens: Tensor
    correct: Tensor
    dataset_sums: Tensor | None = None
    dataset_tokens: Tensor | None = None

    @property
    def mean(self) -> Tensor:
        """The cross entropy per supervised token, in nats; 0 without supervised tokens."""
        return self.sum / self.tokens.clamp(min=1)


def token_loss(
    hidden: Tensor,
    labels: Tensor,
    logits: Head,
    vocabulary: int,
    dataset_ids: Tensor | None = None,
    dataset_count: int = 0,
) -> TokenLoss:
    """Returns the sum of the cross entropies of aligned hidden states and labels.

    Args:
        hidden: hidden states [..., D].
        labels: [...], IGNORE_INDEX where unsupervised.
        logits: computes the logits [R, V] of hidden rows [R, D].
        vocabulary: V, which determines the size of the chunks.
        dataset_ids: [...], below `dataset_count` where a label is supervised; None for no sums per dataset.
        dataset_count: the number of datasets.
    """
    is_supervised = labels.flatten() != IGNORE_INDEX
    supervised = is_supervised.nonzero().squeeze(1)  # the host waits for the device, which alone knows how many
    rows, targets = hidden.flatten(0, -2).index_select(0, supervised), labels.flatten()[supervised]
    size = max(1, MAX_LOGIT_ELEMENTS // vocabulary)
    size -= size % ROW_TILE if size > ROW_TILE else 0
    chunks = list(zip(rows.split(size), targets.split(size), strict=True))
    losses = _chunk_losses(rows, chunks, logits, "sum" if dataset_ids is None else "none")
    loss = TokenLoss(losses.total, is_supervised.sum(), losses.correct)
    if dataset_ids is not None:
        ids, own = dataset_ids.flatten()[supervised], losses.parts.detach()
        loss.dataset_sums = own.new_zeros(dataset_count).index_add_(0, ids, own)
        loss.dataset_tokens = ids.new_zeros(dataset_count).index_add_(0, ids, torch.ones_like(ids))
    return loss


class _Losses(NamedTuple):
    """The sum of the losses with its gradient, the losses of all rows or chunks, and the number of correct rows."""

    total: Tensor
    parts: Tensor
    correct: Tensor


def _chunk_losses(rows: Tensor, chunks: Chunks, logits: Head, reduction: str) -> _Losses:
    """Returns the losses of all chunks of `rows`; `reduction` is "none" for one per row, "sum" for one per chunk."""
    with _weights_cast_once(rows.device.type):
        if not torch.is_grad_enabled():
            return _join(_chunk_loss(*chunk, logits, reduction) for chunk in chunks)
        losses = _with_gradients(rows, chunks, logits, reduction)
        if losses is not None:
            return losses
    return _join(checkpoint(_chunk_loss, *chunk, logits, reduction, use_reentrant=False) for chunk in chunks)


def _with_gradients(rows: Tensor, chunks: Chunks, logits: Head, reduction: str) -> _Losses | None:
    """Returns the losses with gradients that are computed here; None where the backward pass must compute them."""
    results, of_rows = [], []
    sums: _LeafSums | None = None
    space = rows.new_empty(0)
    for part, targets in chunks:
        part = part.detach().requires_grad_()
        start = part.view_as(part).grad_fn
        scores = logits(part)
        if sums is None:
            leaves = _leaves(scores, part, start)
            if leaves is None:
                return None
            sums = _LeafSums(leaves)
            space = torch.empty_like(scores, dtype=torch.promote_types(scores.dtype, torch.float32))
        *result, gradient = _cross_entropy(scores.detach(), targets, reduction, space[: len(targets)])
        gradients = torch.autograd.grad(scores, [part, *sums.leaves], gradient, materialize_grads=True)
        of_part, *of_leaves = _with_own_memory(gradients, space)
        results.append(result)
        of_rows.append(of_part)
        sums.add(of_leaves)
        del scores, gradient, gradients, of_leaves  # before the logits of the next chunk
    assert sums is not None
    losses = _join(results)
    known = [torch.cat(of_rows), *sums.read()]
    return losses._replace(total=_KnownGradients.apply(losses.total, known, rows, *sums.leaves))


class _LeafSums:
    """The gradients of the head's trained tensors, summed over chunks in float32 at least."""

    def __init__(self, leaves: list[Tensor]) -> None:
        self.leaves = leaves
        self.sums: list[Tensor] = []

    def add(self, gradients: list[Tensor]) -> None:
        """Adds the gradients of a chunk; the first ones are added to in place."""
        if self.sums:
            torch._foreach_add_(self.sums, gradients)
        else:
            self.sums = [one.to(torch.promote_types(one.dtype, torch.float32)) for one in gradients]

    def read(self) -> list[Tensor]:
        """Returns the sums in the number types of the leaves."""
        return [one.to(leaf.dtype) for one, leaf in zip(self.sums, self.leaves, strict=True)]


def _with_own_memory(gradients: Sequence[Tensor], space: Tensor) -> list[Tensor]:
    """Returns the gradients, and copies of those that autograd made of `space` or of each other's memory."""
    uses = Counter(one.untyped_storage()._cdata for one in (space, *gradients))
    return [one.clone() if uses[one.untyped_storage()._cdata] > 1 else one.contiguous() for one in gradients]


class _KnownGradients(torch.autograd.Function):
    """A sum whose gradients are known; the backward pass multiplies them by the gradient of the sum."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, gradients: list[Tensor], *inputs: Tensor) -> Tensor:
        """Keeps the `gradients` with respect to `inputs`, and returns the sum."""
        ctx.save_for_backward(*gradients)
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of the sum's arguments."""
        needed = zip(ctx.saved_tensors, ctx.needs_input_grad[2:], strict=True)
        return None, None, *(one * scale.to(one.device, one.dtype) if asked else None for one, asked in needed)


def _leaves(scores: Tensor, rows: Tensor, start: Any) -> list[Tensor] | None:
    """Returns the trained tensors on which `scores` depend, besides `rows`.

    None if a gradient cannot be computed ahead of the backward pass: the head reads a tensor that was computed before
    the node `start`, its parameters are gathered for it alone (FSDP2 would take the end of the gradient for the end of
    the backward pass), a gradient has a hook, or is in float16, where one without the scale of the loss underflows.
    """
    found: list[Tensor] = []
    seen, waiting = set[Any](), [scores.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == ACCUMULATION:
            found.append(node.variable)
        elif node._sequence_nr() < start._sequence_nr() or node.name().startswith(GATHERED):
            return None
        waiting += [parent for parent, _ in node.next_functions]
    if scores.dtype == torch.float16 or any(leaf._backward_hooks for leaf in found):
        return None
    return [leaf for leaf in found if leaf is not rows]


@torch.no_grad()
def _cross_entropy(scores: Tensor, targets: Tensor, reduction: str, space: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the losses of logits [R, V], the number of correct rows, and the gradient [R, V] of the sum.

    Args:
        scores: the logits.
        targets: [R].
        reduction: as in `_chunk_losses`.
        space: memory [R, V] to compute in.
    """
    targets = targets.to(scores.device)  # a head may lie on another device
    correct = (scores.max(-1).indices == targets).sum()
    torch.log_softmax(scores, -1, dtype=space.dtype, out=space)
    losses = nll_loss(space, targets, reduction=reduction)
    space.exp_()
    space[torch.arange(len(targets), device=targets.device), targets] -= 1
    return losses, correct, space.to(scores.dtype)


def _chunk_loss(rows: Tensor, targets: Tensor, logits: Head, reduction: str) -> tuple[Tensor, Tensor]:
    scores = logits(rows)
    targets = targets.to(scores.device)
    correct = (scores.detach().max(-1).indices == targets).sum()
    logarithms = log_softmax(scores.to(torch.promote_types(scores.dtype, torch.float32)), -1)
    return nll_loss(logarithms, targets, reduction=reduction), correct


def _join(results: Iterable[Sequence[Tensor]]) -> _Losses:
    losses, counts = zip(*results, strict=True)
    parts = torch.cat([loss.flatten() for loss in losses])
    return _Losses(parts.sum(), parts, torch.stack(counts).sum())


@contextmanager
def _weights_cast_once(device: str) -> Iterator[None]:
    """Lets autocast keep its copies of the head's weights from chunk to chunk, which Lightning turns off."""
    if not torch.is_autocast_enabled(device):
        yield
        return
    torch.clear_autocast_cache()  # a copy that was made before has a graph of its own
    with torch.autocast(device, torch.get_autocast_dtype(device), cache_enabled=True):
        yield
    torch.clear_autocast_cache()
