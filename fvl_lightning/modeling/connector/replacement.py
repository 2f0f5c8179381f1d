"""Sources of single images replaced behind the alignment: by zeros, their mean, another image's features or noise.

A replaced source has the shape of the true one, so that every fusion takes it, and what replaces it is made from
features that are there already: the encoder sees an image once, however many sources are replaced in turn.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from fvl_lightning.modeling.connector.alignment import AlignedSources

Replacement = Literal["zero", "mean", "shuffled", "noise"]
"""zero: zeros, as in source dropout; mean: the source's mean over the images, at each place; shuffled: the features of
another image; noise: normal noise with the source's mean and variance over the images, at each place and channel."""
REPLACEMENTS: tuple[Replacement, ...] = get_args(Replacement)
NOISE_DRAWS = 16
"""Draws of noise for a source; images take turns in using them, so that noise does not depend on batches."""


def replace_sources(sources: AlignedSources, substitutes: Mapping[str, Tensor], kept: Tensor) -> AlignedSources:
    """Returns sources [I, N, D] with substitutes in place of those that are not kept.

    Args:
        sources: the true features {source: [I, N, D_source]}.
        substitutes: features of the same shapes, or such that broadcast to them.
        kept: [I, K] bool, or [K] for all images alike, in the order of the sources.
    """
    images = len(next(iter(sources.values())))
    columns = kept.expand(images, len(sources)).unbind(1)
    return AlignedSources(
        {
            name: torch.where(column.view(-1, 1, 1).to(x.device), x, substitutes[name].to(x))
            for (name, x), column in zip(sources.items(), columns, strict=True)
        }
    )


def zeros(sources: AlignedSources) -> AlignedSources:
    """Returns zeros of the shapes of the sources."""
    return AlignedSources({name: torch.zeros_like(x) for name, x in sources.items()})


@dataclass(frozen=True)
class SourceMoments:
    """The mean and the standard deviation of each source over images, {source: [N, D_source]} float32 on the CPU."""

    mean: Mapping[str, Tensor]
    deviation: Mapping[str, Tensor]

    @classmethod
    def of(cls, batches: Iterable[AlignedSources]) -> "SourceMoments":
        """Returns the moments over all images of the batches {source: [I, N, D_source]}, at least one image."""
        images, sums, squares = 0, dict[str, Tensor](), dict[str, Tensor]()
        for sources in batches:
            images += len(next(iter(sources.values())))
            for name, x in sources.items():
                values = x.detach().to("cpu", torch.float64)  # not every device computes in float64
                sums[name] = values.sum(0) + sums.get(name, 0.0)
                squares[name] = values.square().sum(0) + squares.get(name, 0.0)
        means = {name: total / images for name, total in sums.items()}
        variances = {name: (squares[name] / images - mean.square()).clamp(min=0) for name, mean in means.items()}
        return cls(
            {name: mean.float() for name, mean in means.items()},
            {name: variance.sqrt().float() for name, variance in variances.items()},
        )

    def noise(self, seed: int = 0) -> dict[str, Tensor]:
        """Returns NOISE_DRAWS draws of each source, {source: [NOISE_DRAWS, N, D_source]}; a seed has one noise."""
        generator = torch.Generator().manual_seed(seed)
        drawn = {}
        for name, mean in self.mean.items():
            drawn[name] = mean + self.deviation[name] * torch.randn(NOISE_DRAWS, *mean.shape, generator=generator)
        return drawn
