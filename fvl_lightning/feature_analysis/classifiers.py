"""Classifiers on fixed features: a linear probe and the nearest neighbours.

Both standardise each channel by the mean and deviation of the fitted rows.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Ridge penalties to choose from, as multiples of the largest eigenvalue of X'X."""
NEIGHBOURS = 10


def linear_probe(fitted: Tensor, labels: Tensor, tested: Tensor) -> Tensor:
    """Returns the labels [m] that ridge regression on one-hot labels predicts; the largest output counts.

    The penalty has the smallest squared error when each fitted row is predicted from all others, which is known in
    closed form. The mean is not penalised.

    Args:
        fitted: features [n, D].
        labels: their labels [n], from 0 on.
        tested: features [m, D].
    """
    x, new = _standardised(fitted, tested)
    y = one_hot(labels).double()
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    mean, rotated = y.mean(0), u.T @ (y - y.mean(0))
    best, chosen = float("inf"), s.new_zeros(len(s))
    for strength in STRENGTHS:
        penalty = strength * s[0].square().clamp(min=torch.finfo(s.dtype).tiny)
        kept = s.square() / (s.square() + penalty)
        leverage = u.square() @ kept + 1 / len(x)
        error = (y - mean - u @ (kept[:, None] * rotated)) / (1 - leverage).clamp(min=1e-9)[:, None]
        if float(error.square().sum()) < best:
            best, chosen = float(error.square().sum()), s / (s.square() + penalty)
    return (mean + new @ (vt.T @ (chosen[:, None] * rotated))).argmax(1)


def nearest_neighbours(fitted: Tensor, labels: Tensor, tested: Tensor, count: int = NEIGHBOURS) -> Tensor:
    """Returns the labels [m] that most of the `count` fitted rows with the largest cosine similarity have.

    If labels have equally many neighbours, that with the larger sum of similarities counts. Arguments are those of
    `linear_probe`.
    """
    x, new = _standardised(fitted, tested)
    similar, rows = (normalize(new, dim=1) @ normalize(x, dim=1).T).topk(min(count, len(x)), dim=1)
    votes = similar.new_zeros(len(new), int(labels.max()) + 1)
    votes.scatter_add_(1, labels[rows], 1 + similar / (4 * count))  # the sum of similarities stays below half a vote
    return votes.argmax(1)


def _standardised(fitted: Tensor, tested: Tensor) -> tuple[Tensor, Tensor]:
    mean, deviation = fitted.double().mean(0), fitted.double().std(0, correction=0)
    deviation = torch.where(deviation > 0, deviation, 1.0)
    return (fitted.double() - mean) / deviation, (tested.double() - mean) / deviation
