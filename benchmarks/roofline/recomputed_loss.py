"""The loss as at commit 725f5d8, to compare with: the logits of each chunk are computed again in the backward pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from fvl_lightning.core.types import IGNORE_INDEX
from fvl_lightning.modeling.loss import MAX_LOGIT_ELEMENTS, TokenLoss


def recomputed_token_loss(
    hidden: Tensor, labels: Tensor, logits: Callable[[Tensor], Tensor], vocabulary: int, *_: Any, **__: Any
) -> TokenLoss:
    """Returns the same as `token_loss`, without sums per dataset."""
    supervised = labels != IGNORE_INDEX
    rows, targets = hidden[supervised], labels[supervised]

    def part(chunk: Tensor, aims: Tensor) -> tuple[Tensor, Tensor]:
        scores = logits(chunk).float()
        return cross_entropy(scores, aims, reduction="sum"), (scores.detach().argmax(-1) == aims).sum()

    size = max(1, MAX_LOGIT_ELEMENTS // vocabulary)
    pairs = zip(rows.split(size), targets.split(size), strict=True)
    parts = [checkpoint(part, *pair, use_reentrant=False) for pair in pairs]
    losses, correct = zip(*parts, strict=True)
    return TokenLoss(torch.stack(losses).sum(), supervised.sum(), torch.stack(correct).sum())
