"""Attention over sources at each position: the sources of a position are its keys and values."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fvl_lightning.core.config.fields import number
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.registry import register
from fvl_lightning.core.types import FeatureSpec, FusionOutput
from fvl_lightning.fusions.base import CommonWidth, Fusion, source_weights


@register("fusion", "attention")
class AttentionFusion(Fusion):
    """Multi-head attention in which each position attends to its own K sources only."""

    @dataclass
    class Config:
        """Fields of the fusion."""

        query: Literal["learned", "first"] = "first"
        """learned: one query for all positions; first: the query is computed from the first source at the position."""
        heads: int = number(4, at_least=1)
        """Attention heads; must divide the width."""
        dim: int | None = number(None, at_least=1)
        """Width to which the sources are projected; null for the first source's."""

    def __init__(self, config: Config, sources: dict[str, FeatureSpec]) -> None:
        super().__init__(config, sources)
        first = next(iter(sources.values()))
        self.common_width = CommonWidth(sources, config.dim)
        dim = self.common_width.dim
        if config.heads < 1 or dim % config.heads:
            raise ConfigError(f"fusion.heads: {config.heads} heads do not divide the width {dim}")
        # The content does not say which source a key comes from, so that each source adds a key of its own.
        self.source_keys = nn.Embedding(len(sources), dim)
        self.query = nn.Embedding(1, dim) if config.query == "learned" else nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self.output = FeatureSpec(first.tokens, dim, first.grid)

    def forward(self, sources: dict[str, Tensor]) -> FusionOutput:
        """Returns [I, N, D] and the weight of each source for {source: [I, N, D_source]}."""
        x = torch.stack(self.common_width(sources), dim=2)  # [I, N, K, D]
        key, value = self.key_value(x).chunk(2, dim=-1)
        key = key + self.source_keys.weight
        query = self.query.weight.expand_as(x[:, :, 0]) if self.config.query == "learned" else self.query(x[:, :, 0])
        split = (self.config.heads, -1)
        query, key, value = query.unflatten(-1, split), key.unflatten(-1, split), value.unflatten(-1, split)
        scores = torch.einsum("inhd,inkhd->inhk", query, key) * query.shape[-1] ** -0.5
        weights = scores.softmax(-1)
        fused = torch.einsum("inhk,inkhd->inhd", weights, value).flatten(-2)
        return FusionOutput(self.out(fused), source_weights(weights, self.sources))
