"""Numbers of the features of some images: effective rank, similarity, and the share beyond the first source."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fvl_lightning.evaluation.statistics.resampling import Estimate, Resamples, estimate, ratio
from fvl_lightning.feature_analysis.effective_rank import effective_rank
from fvl_lightning.feature_analysis.explained import HeldOutFit, held_out_fits
from fvl_lightning.feature_analysis.images import ImageFeatures
from fvl_lightning.feature_analysis.places import at_common_places, share_of_place, without_place
from fvl_lightning.feature_analysis.similarity import cka_matrix


@dataclass(frozen=True)
class FeatureNumbers:
    """Numbers of the features of some images, at places that all of them have."""

    ranks: dict[str, float]
    """{source: effective rank of what differs between images at a place}."""
    place_shares: dict[str, float]
    """{source: share of the variance that is the same for all images at a place}."""
    base: str
    """The source that explains others."""
    beyond: dict[str, Estimate]
    """{source: share of the variance between images that the base does not explain}, with an interval over images."""
    similarity: Tensor
    """[K, K]: linear CKA of what differs between images at a place, in the order of `ranks`."""
    rows: int
    """Images times places."""


def feature_numbers(features: ImageFeatures, base: str | None = None) -> FeatureNumbers | None:
    """Returns the numbers of the sources that are maps; None where none is.

    Args:
        features: the sources of some images.
        base: the source that explains the others; None for the first one.
    """
    places = at_common_places(features.sources, features.specs)
    if not places:
        return None
    base = next(iter(places)) if base is None else base
    content = {name: without_place(x) for name, x in places.items()}
    others = {name: x for name, x in places.items() if name != base}
    fits: dict[str, HeldOutFit] = {}
    if others and len(set(features.samples)) >= 3:
        fits = held_out_fits(places[base], others, features.samples)
    return FeatureNumbers(
        {name: effective_rank(x) for name, x in content.items()},
        {name: share_of_place(x) for name, x in places.items()},
        base,
        {name: unexplained(fit, features.samples) for name, fit in fits.items()},
        cka_matrix(content),
        len(features) * next(iter(places.values())).shape[1],
    )


def unexplained(fit: HeldOutFit, samples: tuple[int, ...]) -> Estimate:
    """Returns the share that is not explained, with an interval over samples, which are drawn whole."""
    resamples = Resamples(samples)
    sums = resamples.sums(resamples.totals(torch.stack([fit.residual, fit.total], 1).numpy())[:, 0])
    return estimate(ratio(sums[:, 0], sums[:, 1]), resamples.clusters)
