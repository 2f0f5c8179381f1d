"""Space to depth, then an MLP: a token for each block of the map (InternVL 1.5, arXiv 2404.16821; nanoVLM)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fvl_lightning.core.config.fields import number
from fvl_lightning.core.registry import register
from fvl_lightning.core.types import FeatureSpec
from fvl_lightning.projectors.base import Projector, blocks_of, divided, mlp, options_of_factors


@register("projector", "pixel_shuffle")
class PixelShuffleProjector(Projector):
    """y_b = MLP(LayerNorm([x_b1; ...; x_bff])): the f x f tokens of a block side by side on channels.

    The places of a block are in row-major order, each with all of its channels, as in InternVL (version 2 of its
    shuffle), Idefics3 and nanoVLM. Tokens before the map have no neighbours: an MLP of their own keeps each of them.
    """

    @dataclass
    class Config:
        """Fields of the projector."""

        factor: int = number(2, at_least=1)
        """Side of a block in tokens: the language model gets 1 / factor^2 of the map. It must divide both sides."""
        depth: int = number(2, at_least=1)
        """Number of linear layers (nanoVLM: 1)."""
        hidden: int | None = number(None, at_least=1)
        """Width between the layers; null for the language model's."""
        norm: bool = True
        """Whether a LayerNorm comes before the layers (InternVL), or none (nanoVLM)."""

    def __init__(self, config: Config, features: FeatureSpec, dim: int) -> None:
        super().__init__(config, features, dim)
        self.grid, self.prefix = divided(features, config.factor, "pixel_shuffle"), features.prefix
        self.tokens = self.prefix + self.grid[0] * self.grid[1]
        self.layers = self._layers(features.dim * config.factor**2, dim)
        self.prefix_layers = self._layers(features.dim, dim) if self.prefix else None

    def _layers(self, dim: int, out: int) -> nn.Sequential:
        norm = [nn.LayerNorm(dim)] if self.config.norm else []
        return nn.Sequential(*norm, *mlp(dim, out, self.config.depth, self.config.hidden))

    @classmethod
    def token_options(cls, config: Any, features: FeatureSpec) -> dict[int, Any]:
        """See Projector: a number for every factor that divides the map."""
        return options_of_factors(config, features, "pixel_shuffle")

    def image_tokens(self) -> FeatureSpec:
        """See Projector: the map of blocks."""
        return FeatureSpec(self.tokens, self._dim, self.grid)

    def forward(self, features: Tensor) -> Tensor:
        """Returns [I, prefix + N / factor^2, D] for [I, prefix + N, D_in]."""
        prefix, tokens = features[:, : self.prefix], features[:, self.prefix :]
        shuffled = self.layers(blocks_of(tokens, self.grid, self.config.factor).flatten(2))
        return shuffled if self.prefix_layers is None else torch.cat([self.prefix_layers(prefix), shuffled], dim=1)
