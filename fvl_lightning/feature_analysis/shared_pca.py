"""Principal components of several sources and images in one basis, as colours."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

COLOURS = 3
TAILS = (0.01, 0.99)
"""Quantiles of a component that become the darkest and the brightest value of its colour."""


@dataclass(frozen=True)
class SharedPca:
    """Features of one or more sources of one width on their first three common principal components."""

    colours: dict[str, Tensor]
    """{source: [I, N, 3]} in [0, 1]: the components as red, green and blue, on one scale for all sources and images."""
    shares: tuple[float, ...]
    """The share of the variance of all rows that each component has."""


def shared_pca(sources: Mapping[str, Tensor]) -> SharedPca:
    """Returns the first three principal components of the rows of all sources [I, N, D] together.

    The same colour is the same direction in every picture of every source. The mean of each source over all images and
    places is subtracted before: otherwise the first components would show which source a picture is of. A component's
    sign is such that its largest entry is positive; a component that does not exist is grey.
    """
    rows = {name: x.double() - x.double().mean((0, 1)) for name, x in sources.items()}
    flat = torch.cat([x.flatten(0, 1) for x in rows.values()])
    values, vectors = torch.linalg.eigh(flat.T @ flat)
    values, vectors = values.flip(0).clamp(min=0)[:COLOURS], vectors.flip(1)[:, :COLOURS]
    vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    total = float(flat.square().sum())
    shares = tuple(float(value) / total if total > 0 else 0.0 for value in values)
    if vectors.shape[1] < COLOURS:
        vectors = torch.nn.functional.pad(vectors, (0, COLOURS - vectors.shape[1]))
    low, high = _ends(flat @ vectors)
    span = (high - low).clamp(min=1e-12)
    scaled = {name: torch.where(high > low, (x @ vectors - low) / span, 0.5) for name, x in rows.items()}
    return SharedPca({name: x.clamp(0, 1).float() for name, x in scaled.items()}, shares)


def by_width(sources: Mapping[str, Tensor]) -> list[list[str]]:
    """Returns the names of sources of one width together, since only they have a basis in common."""
    groups: dict[int, list[str]] = {}
    for name, x in sources.items():
        groups.setdefault(x.shape[-1], []).append(name)
    return list(groups.values())


def _ends(components: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the quantiles TAILS [3] of each component [M, 3]."""
    ordered = components.sort(0).values
    low, high = (ordered[round(tail * (len(ordered) - 1))] for tail in TAILS)
    return low, high
