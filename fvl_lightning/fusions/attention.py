"""Attention over sources at each position: the sources of a position are its keys and values."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fvl_lightning.core.config.fields import number
from fvl_lightning.core.registry import register
from fvl_lightning.core.types import FeatureSpec, FusionOutput
from fvl_lightning.fusions.base import CommonWidth, Fusion, check_heads, source_weights


@register("fusion", "attention")
class AttentionFusion(Fusion):
    """Multi-head attention in which each position attends to its own K sources only.

    With `condition: question` a linear map of the question's embedding is added to the query of every position.
    """

    @dataclass
    class Config:
        """Fields of the fusion."""

        query: Literal["learned", "first"] = "first"
        """learned: one query for all positions; first: the query is computed from the first source at the position."""
        condition: Literal["question"] | None = None
        """question: the query reads the question too; null: it does not."""
        heads: int = number(4, at_least=1)
        """Attention heads; must divide the width."""
        dim: int | None = number(None, at_least=1)
        """Width to which the sources are projected; null for the first source's."""

    def __init__(self, config: Config, sources: dict[str, FeatureSpec], question_dim: int | None = None) -> None:
        super().__init__(config, sources, question_dim)
        first = next(iter(sources.values()))
        self.common_width = CommonWidth(sources, config.dim)
        dim = self.common_width.dim
        check_heads(config.heads, dim)
        # The content does not say which source a key comes from, so that each source adds a key of its own.
        self.source_keys = nn.Embedding(len(sources), dim)
        self.query = nn.Embedding(1, dim) if config.query == "learned" else nn.Linear(dim, dim)
        self.question = nn.Linear(question_dim, dim, bias=False) if question_dim is not None else None
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self.output = FeatureSpec(first.tokens, dim, first.grid)

    @classmethod
    def is_conditioned(cls, config: Config) -> bool:
        """Returns whether the query reads the question."""
        return config.condition == "question"

    def forward(self, sources: dict[str, Tensor], question: Tensor | None = None) -> FusionOutput:
        """Returns [I, N, D] and the weight of each source for {source: [I, N, D_source]}; `question` is [I, C]."""
        x = torch.stack(self.common_width(sources), dim=2)  # [I, N, K, D]
        key, value = self.key_value(x).chunk(2, dim=-1)
        key = key + self.source_keys.weight
        query = self.query.weight.expand_as(x[:, :, 0]) if self.config.query == "learned" else self.query(x[:, :, 0])
        if self.question is not None:
            query = query + self.question(question).unsqueeze(1)
        split = (self.config.heads, -1)
        query, key, value = query.unflatten(-1, split), key.unflatten(-1, split), value.unflatten(-1, split)
        scores = torch.einsum("inhd,inkhd->inhk", query, key) * query.shape[-1] ** -0.5
        weights = scores.softmax(-1)
        fused = torch.einsum("inhk,inkhd->inhd", weights, value).flatten(-2)
        return FusionOutput(self.out(fused), source_weights(weights, self.sources))
