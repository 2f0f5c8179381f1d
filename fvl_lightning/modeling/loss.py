"""Cross entropy over supervised positions; logits of other positions are not computed."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fvl_lightning.core.types import IGNORE_INDEX

MAX_LOGIT_ELEMENTS = 2**25
"""The most logits held at a time, 128 MiB in float32; more rows go in chunks, recomputed in the backward pass."""


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
    logits: Callable[[Tensor], Tensor],
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
    supervised = labels != IGNORE_INDEX
    rows, targets = hidden[supervised], labels[supervised]
    reduction = "sum" if dataset_ids is None else "none"

    def chunk_loss(chunk: Tensor, chunk_targets: Tensor) -> tuple[Tensor, Tensor]:
        scores = logits(chunk)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        chunk_targets = chunk_targets.to(scores.device)  # a head may lie on another device
        correct = (scores.detach().argmax(-1) == chunk_targets).sum()
        return torch.nn.functional.cross_entropy(scores, chunk_targets, reduction=reduction), correct

    size = max(1, MAX_LOGIT_ELEMENTS // vocabulary)
    if rows.shape[0] <= size:
        losses, correct = chunk_loss(rows, targets)
    else:
        parts = [
            checkpoint(chunk_loss, part, part_targets, use_reentrant=False)
            for part, part_targets in zip(rows.split(size), targets.split(size), strict=True)
        ]
        losses = torch.cat([part[0].flatten() for part in parts])
        correct = torch.stack([part[1] for part in parts]).sum()
    loss = TokenLoss(losses.sum(), supervised.sum(), correct)
    if dataset_ids is not None:
        ids = dataset_ids[supervised]
        loss.dataset_sums = losses.new_zeros(dataset_count).index_add_(0, ids, losses.detach())
        loss.dataset_tokens = ids.new_zeros(dataset_count).index_add_(0, ids, torch.ones_like(ids))
    return loss
