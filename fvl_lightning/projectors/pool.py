"""Pooling over blocks of the map, then an MLP.

By the average as in DeCo (arXiv 2405.20985), or by attention as in Molmo (arXiv 2409.17146).
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fvl_lightning.core.config.fields import number
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.registry import register
from fvl_lightning.core.types import FeatureSpec
from fvl_lightning.projectors.base import Projector, blocks_of, divided, mlp, options_of_factors


@register("projector", "pool")
class PoolProjector(Projector):
    """y_b = MLP(p_b), where p_b is the mean m_b of the f x f tokens of a block, or what m_b attends to among them.

    With attention, p_b = W_o sum_j softmax_j(<W_q m_b, W_k x_bj> / sqrt(d)) W_v x_bj, in each head of width d. Tokens
    before the map pass through the MLP as they are.
    """

    @dataclass
    class Config:
        """Fields of the projector."""

        factor: int = number(2, at_least=1)
        """Side of a block in tokens: the language model gets 1 / factor^2 of the map. It must divide both sides."""
        by: Literal["mean", "attention"] = "mean"
        """mean: the average of a block, without parameters; attention: multi-head attention, with its average as
        query."""
        heads: int = number(8, at_least=1)
        """Attention heads; must divide the width of the fused features."""
        depth: int = number(2, at_least=1)
        """Number of linear layers."""
        hidden: int | None = number(None, at_least=1)
        """Width between the layers; null for the language model's."""

    def __init__(self, config: Config, features: FeatureSpec, dim: int) -> None:
        super().__init__(config, features, dim)
        self.grid, self.prefix = divided(features, config.factor, "pool"), features.prefix
        self.tokens = self.prefix + self.grid[0] * self.grid[1]
        if config.by == "attention":
            if features.dim % config.heads:
                raise ConfigError(f"projector.heads: {config.heads} heads do not divide the width {features.dim}")
            self.query = nn.Linear(features.dim, features.dim)
            self.key_value = nn.Linear(features.dim, 2 * features.dim)
            self.out = nn.Linear(features.dim, features.dim)
        self.layers = mlp(features.dim, dim, config.depth, config.hidden)

    @classmethod
    def token_options(cls, config: Any, features: FeatureSpec) -> dict[int, Any]:
        """See Projector: a number for every factor that divides the map."""
        return options_of_factors(config, features, "pool")

    def image_tokens(self) -> FeatureSpec:
        """See Projector: the map of blocks."""
        return FeatureSpec(self.tokens, self._dim, self.grid)

    def forward(self, features: Tensor) -> Tensor:
        """Returns [I, prefix + N / factor^2, D] for [I, prefix + N, D_in]."""
        blocks = blocks_of(features[:, self.prefix :], self.grid, self.config.factor)
        pooled = blocks.mean(2)
        if self.config.by == "attention":
            pooled = self._attend(pooled, blocks)
        return self.layers(torch.cat([features[:, : self.prefix], pooled], dim=1))

    def _attend(self, means: Tensor, blocks: Tensor) -> Tensor:
        """Returns [I, M, D_in] for the means [I, M, D_in] of blocks [I, M, places, D_in]."""
        heads = (self.config.heads, -1)
        query = self.query(means).unflatten(-1, heads)
        key, value = (x.unflatten(-1, heads) for x in self.key_value(blocks).chunk(2, dim=-1))
        scores = torch.einsum("imhd,imphd->imhp", query, key) * query.shape[-1] ** -0.5
        return self.out(torch.einsum("imhp,imphd->imhd", scores.softmax(-1), value).flatten(-2))
