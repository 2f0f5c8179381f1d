"""Features at the same places of the same images, so that sources, prompts, layers and encoders can be compared."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fvl_lightning.core.types import FeatureSpec
from fvl_lightning.fusions.base import resize_map

MAX_ROWS = 4096
"""The most rows, images times places, that a number is computed from."""


def feature_map(features: Tensor, spec: FeatureSpec) -> Tensor:
    """Returns the map [I, D, rows, columns] of features [I, N, D], without the tokens before it; `spec` has a grid."""
    assert spec.grid is not None
    return features[:, spec.prefix :].transpose(1, 2).unflatten(2, spec.grid)


def at_common_places(
    sources: Mapping[str, Tensor], specs: Mapping[str, FeatureSpec], rows: int = MAX_ROWS
) -> dict[str, Tensor]:
    """Returns {source: [I, M, D]} in float64 at the same M places of the image.

    Maps are averaged to the smallest grid among the sources. At most `rows` / I of its places are drawn, the same for
    all images and in every call. Sources without a map are left out.

    Args:
        sources: {source: [I, N, D]}.
        specs: {source: its shape}.
        rows: the most rows.
    """
    grids = [grid for spec in specs.values() if (grid := spec.grid) is not None]
    if not grids:
        return {}
    smallest = min(grids, key=lambda grid: grid[0] * grid[1])
    count = smallest[0] * smallest[1]
    most = max(1, rows // max(1, len(next(iter(sources.values())))))
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most].sort().values
    return {
        name: resize_map(feature_map(x.double(), specs[name]), smallest).flatten(2).transpose(1, 2)[:, drawn]
        for name, x in sources.items()
        if specs[name].grid is not None
    }


def without_place(features: Tensor) -> Tensor:
    """Returns features [I, M, D] minus their mean over the images at each place: what differs between images."""
    return features - features.mean(0, keepdim=True)


def share_of_place(features: Tensor) -> float:
    """Returns the share of the variance of features [I, M, D] that is the same for every image at a place.

    That is 1 - (sum of squares around the mean of each place) / (sum of squares around the mean of all rows).
    """
    total = (features - features.mean((0, 1))).square().sum()
    return float(1 - without_place(features).square().sum() / total) if total > 0 else 0.0
