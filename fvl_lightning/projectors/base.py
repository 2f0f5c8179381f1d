"""The base class of projectors, and the parts that several of them share."""

from abc import ABC, abstractmethod
from dataclasses import replace
from itertools import pairwise
from math import gcd
from typing import Any

from torch import Tensor, nn

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.types import FeatureSpec


class Projector(nn.Module, ABC):
    """Maps fused features to the embedding space of the language model.

    A subclass that makes fewer tokens sets `tokens`, and overrides `token_options` so that a comparison can choose
    their number. All its parameters must be in modules with `reset_parameters()`, since models are first built without
    memory.

    Args:
        config: the Config of the projector.
        features: the shape of the fused features.
        dim: the width of the language model's embeddings.
    """

    tokens: int
    """The number of tokens per image that the language model gets."""

    def __init__(self, config: Any, features: FeatureSpec, dim: int) -> None:
        super().__init__()
        self.config = config
        self.tokens = features.tokens
        self._features, self._dim = features, dim

    @classmethod
    def token_options(cls, config: Any, features: FeatureSpec) -> dict[int, Any]:
        """Returns {number of tokens: the Config that makes this many of such features}, the smallest number first.

        `match: tokens` of a comparison chooses among them. The one option here is that of a projector that keeps every
        token.
        """
        return {features.tokens: config}

    def image_tokens(self) -> FeatureSpec:
        """Returns the shape of the tokens that the language model gets, with the map or the parts that they keep.

        Here they have the places of the features if there are as many, and otherwise none. A subclass whose tokens have
        other places overrides it.
        """
        kept = self.tokens == self._features.tokens
        parts = self._features.parts if self._features.parts_on_tokens else {}
        return FeatureSpec(self.tokens, self._dim, self._features.grid if kept else None, parts if kept else {})

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Returns [I, N, D] for [I, N_in, D_in], where N is `tokens`."""


def mlp(dim: int, out: int, depth: int, hidden: int | None) -> nn.Sequential:
    """Returns `depth` linear layers with GELU between them, from width `dim` to `out`; null `hidden` is `out`."""
    widths = [dim, *[hidden or out] * (depth - 1), out]
    layers: list[nn.Module] = [nn.Linear(widths[0], widths[1])]
    for inner, outer in pairwise(widths[1:]):
        layers += [nn.GELU(), nn.Linear(inner, outer)]
    return nn.Sequential(*layers)


def map_of(features: FeatureSpec, projector: str) -> tuple[int, int]:
    """Returns rows and columns of the features' map.

    Raises:
        ConfigError: they are no map of the image.
    """
    if features.grid is None:
        raise ConfigError(
            f"projector {projector}: it needs a map of the image, and the fusion returns {features.tokens} tokens that "
            "are none; take a fusion that keeps the map, or the projector resampler or per_source"
        )
    return features.grid


def factors_of(grid: tuple[int, int]) -> list[int]:
    """Returns the factors that divide both sides of a map, the largest first."""
    common = gcd(*grid)
    return [factor for factor in range(common, 0, -1) if common % factor == 0]


def divided(features: FeatureSpec, factor: int, projector: str) -> tuple[int, int]:
    """Returns rows and columns of the map in blocks of `factor` x `factor` tokens.

    Raises:
        ConfigError: there is no map, or the factor does not divide it.
    """
    rows, columns = map_of(features, projector)
    if rows % factor or columns % factor:
        fitting = ", ".join(map(str, sorted(factors_of((rows, columns)))))
        raise ConfigError(
            f"projector.factor: {factor} does not divide the map of {rows} x {columns} tokens that {projector} gets, "
            f"take one of {fitting}"
        )
    return rows // factor, columns // factor


def blocks_of(tokens: Tensor, grid: tuple[int, int], factor: int) -> Tensor:
    """Returns the blocks of a map as [I, blocks, factor^2, D]; blocks and places in them are in row-major order.

    Args:
        tokens: [I, N, D], a map in row-major order.
        grid: rows and columns of blocks.
        factor: the side of a block in tokens.
    """
    blocks = tokens.unflatten(1, (grid[0], factor, grid[1], factor)).transpose(2, 3)
    return blocks.flatten(3, 4).flatten(1, 2)


def options_of_factors(config: Any, features: FeatureSpec, projector: str) -> dict[int, Any]:
    """Returns {number of tokens: `config` with the `factor` that gives it}, the smallest number first."""
    rows, columns = map_of(features, projector)
    return {
        features.prefix + rows * columns // factor**2: replace(config, factor=factor)
        for factor in factors_of((rows, columns))
    }
