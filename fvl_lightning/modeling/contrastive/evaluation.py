"""Loss, floor and retrieval of the image and caption vectors of a whole split."""

from typing import NamedTuple

import torch
from torch import Tensor

from fvl_lightning.modeling.contrastive.floor import duplicate_losses, lowest_losses
from fvl_lightning.modeling.contrastive.retrieval import recalls, retrieval_ranks

DIRECTIONS = ("image_to_text", "text_to_image")


class Pairs(NamedTuple):
    """M images with their captions, in the order of the split.

    Attributes:
        images: vectors [M, D] of length 1.
        captions: vectors [M, D] of length 1.
        texts: [M] int64, a number per text, so that equal captions are known.
    """

    images: Tensor
    captions: Tensor
    texts: Tensor


def whole_groups(pairs: Pairs, size: int) -> Pairs:
    """Returns the pairs in whole groups of `size`, [G, size, ...], drawn once for all splits of this length.

    A split may be sorted by kind, which would make neighbours more alike than in training. What is left of the last
    group is left out, since a smaller group has a lower loss. A split with fewer pairs is one group.
    """
    count = len(pairs.texts)
    size = max(1, min(size, count))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))[: count - count % size]
    return Pairs(*(values[order].unflatten(0, (-1, size)) for values in pairs))


def group_losses(groups: Pairs, temperature: float) -> tuple[Tensor, Tensor]:
    """Returns the loss [G, N] of each pair in float64, and whether its own caption is the most similar one [G, N]."""
    scores = groups.images.double() @ groups.captions.double().mT / temperature
    own = scores.diagonal(dim1=-2, dim2=-1)
    right = scores.argmax(-1) == torch.arange(scores.shape[-1])
    return scores.logsumexp(-1) - own, right


def ranks_both_ways(pairs: Pairs) -> dict[str, Tensor]:
    """Returns {direction: rank [M] of the right item among all of the split}; see retrieval_ranks."""
    return {
        "image_to_text": retrieval_ranks(pairs.images, pairs.captions, pairs.texts, pairs.texts),
        "text_to_image": retrieval_ranks(pairs.captions, pairs.images, pairs.texts, pairs.texts),
    }


def evaluate_pairs(pairs: Pairs, size: int, temperature: float) -> dict[str, float]:
    """Returns what a validation pass logs.

    Args:
        pairs: all pairs of the split, at least one.
        size: N.
        temperature: divides the similarities.

    Returns:
        `loss`, `accuracy`, `captions` (the true N), `pairs` (those of the loss), `floor` and `floor_of_duplicates`
        (means of lowest_losses and duplicate_losses), and `<direction>_r<k>` over all pairs.
    """
    groups = whole_groups(pairs, size)
    losses, right = group_losses(groups, temperature)
    values = {
        "loss": float(losses.mean()),
        "accuracy": float(right.double().mean()),
        "captions": float(groups.texts.shape[1]),
        "pairs": float(groups.texts.numel()),
        "floor": float(lowest_losses(groups.captions, temperature).mean()),
        "floor_of_duplicates": float(duplicate_losses(groups.texts).mean()),
    }
    for direction, ranks in ranks_both_ways(pairs).items():
        values |= {f"{direction}_r{k}": share for k, share in recalls(ranks).items()}
    return values
