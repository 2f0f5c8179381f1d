"""Linear CKA: how alike two representations of the same rows are, whatever their axes, scales and widths."""

from collections.abc import Mapping

import torch
from torch import Tensor


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Returns the linear centred kernel alignment (arXiv 1905.00414) of X [M, D] and Y [M, E], from 0 to 1.

    ||Y'X||^2 / (||X'X|| ||Y'Y||) with Frobenius norms, after the mean of each column is subtracted. All rows enter at
    once. A rotation, a reflection or a scale of X or of Y does not change it. With about as many rows as columns it is
    large even for unrelated features. NaN where X or Y is constant.
    """
    x, y = centred(x), centred(y)
    norms = _norm(x) * _norm(y)
    return float(_cross(x, y) / norms) if norms > 0 else float("nan")


def cka_matrix(sources: Mapping[str, Tensor]) -> Tensor:
    """Returns linear_cka [K, K] of every pair among K representations {name: [M, D]} of the same rows."""
    rows = [centred(x) for x in sources.values()]
    norms = [_norm(x) for x in rows]
    matrix = torch.full((len(rows), len(rows)), float("nan"), dtype=torch.float64)
    for i, x in enumerate(rows):
        for j, y in enumerate(rows[: i + 1]):
            if norms[i] > 0 and norms[j] > 0:
                matrix[i, j] = matrix[j, i] = _cross(x, y) / (norms[i] * norms[j])
    return matrix


def centred(x: Tensor) -> Tensor:
    """Returns rows [M, D] in float64 without the mean of each column; [I, M, D] counts as I * M rows."""
    x = x.double().flatten(0, -2)
    return x - x.mean(0)


def _cross(x: Tensor, y: Tensor) -> Tensor:
    """Returns ||Y'X||^2, from the products of columns or of rows, whichever are fewer."""
    if x.shape[1] * y.shape[1] <= len(x) ** 2:
        return (y.T @ x).square().sum()
    return ((x @ x.T) * (y @ y.T)).sum()


def _norm(x: Tensor) -> Tensor:
    """Returns ||X'X||."""
    return _cross(x, x).sqrt()
