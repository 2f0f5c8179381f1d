"""The lowest contrastive loss that any vectors of images could reach with given captions.

Captions do not move while the language model is frozen. Some are alike, or equal, so that no image is near one of them
and far from all others; and similarities lie in [-1, 1], so that a high temperature bounds the loss from below. For
image i, the loss is a convex function of its vector. Its minimum over the ball of length 1 is a lower bound for vectors
of length 1. Accelerated projected gradient steps find it; the Frank-Wolfe gap says how far off they may be, and is
subtracted.
"""

import torch
from torch import Tensor

MAX_STEPS, STEPS_BETWEEN_CHECKS = 2000, 25
TOLERANCE = 1e-4
"""Largest gap in nats after which no more steps are made."""


@torch.no_grad()
def lowest_losses(captions: Tensor, temperature: float) -> Tensor:
    """Returns a lower bound [G, N] in nats of each pair's loss, at most TOLERANCE below the minimum if steps suffice.

    Args:
        captions: [G, N, D], G groups of N captions of length 1.
        temperature: divides the similarities.
    """
    # A part of a vector that is orthogonal to all captions changes nothing, so that N coordinates suffice.
    points = torch.linalg.qr(captions.double().mT).R.mT if captions.shape[1] < captions.shape[2] else captions.double()
    size = temperature**2  # the Hessian is at most 1 / temperature^2: it is a covariance of points of length 1
    vectors = ahead = points
    weight = torch.ones_like(points[..., :1])
    for step in range(1, MAX_STEPS + 1):
        moved = ahead - size * _gradient(ahead, points, temperature)
        moved = moved / moved.norm(dim=-1, keepdim=True).clamp(min=1)
        change = moved - vectors
        # Momentum that points uphill begins anew (O'Donoghue and Candes 2015): without it, vectors would oscillate.
        uphill = ((ahead - moved) * change).sum(-1, keepdim=True) > 0
        weight = weight.masked_fill(uphill, 1.0)
        next_weight = (1 + (1 + 4 * weight**2).sqrt()) / 2
        ahead, vectors, weight = moved + (weight - 1) / next_weight * change, moved, next_weight
        if step % STEPS_BETWEEN_CHECKS == 0 and float(_gaps(vectors, points, temperature).max()) < TOLERANCE:
            break
    scores = vectors @ points.mT / temperature
    losses = scores.logsumexp(-1) - scores.diagonal(dim1=-2, dim2=-1)
    return (losses - _gaps(vectors, points, temperature)).clamp(min=0)


def duplicate_losses(texts: Tensor) -> Tensor:
    """Returns the loss [G, N] in nats that equal captions leave at any temperature: ln(copies of it in its group).

    Args:
        texts: [G, N], a number per text.
    """
    return (texts[..., :, None] == texts[..., None, :]).sum(-1).double().log()


def _gradient(vectors: Tensor, points: Tensor, temperature: float) -> Tensor:
    shares = (vectors @ points.mT / temperature).softmax(-1)
    return (shares @ points - points) / temperature


def _gaps(vectors: Tensor, points: Tensor, temperature: float) -> Tensor:
    """Returns upper bounds [G, N] of how far the losses at `vectors` are above their minima."""
    gradient = _gradient(vectors, points, temperature)
    return (gradient * vectors).sum(-1) + gradient.norm(dim=-1)
