"""Dense Connector (arXiv 2405.13800): the deepest source beside the others, or beside means of groups of sources."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from fvl_lightning.core.config.fields import number
from fvl_lightning.core.registry import register
from fvl_lightning.core.types import FeatureSpec, FusionOutput
from fvl_lightning.fusions.base import CommonWidth, Fusion


@register("fusion", "dense")
class DenseFusion(Fusion):
    """Joins the layers of an encoder, of which the first source x_1 is the deepest, in one of three ways.

    - sparse_token: [x_1; P(x_2); ...; P(x_K)] on tokens, where P averages each block of `pool` x `pool` tokens. The
      released code averages 8 tokens in reading order.
    - sparse_channel: [x_1, ..., x_K] on channels, as `concat` does.
    - dense_channel: [x_1, m_1, ..., m_G] on channels, where m_g is the mean of the g-th group of sources that follow
      each other. x_1 is in the first group too.

    Sources of other widths than the first one's are projected to it, except for sparse_channel.
    """

    @dataclass
    class Config:
        """Fields of the fusion."""

        by: Literal["sparse_token", "sparse_channel", "dense_channel"] = "dense_channel"
        """What is joined, and along which axis; see above."""
        groups: int = number(2, at_least=1)
        """dense_channel: number of groups, as equal in size as possible; at most one for each source."""
        pool: int = number(3, at_least=1)
        """sparse_token: side of the blocks that are averaged; pool x pool tokens in reading order without a map."""

    def __init__(self, config: Config, sources: dict[str, FeatureSpec]) -> None:
        super().__init__(config, sources)
        (name, first), *_ = sources.items()
        self.common_width = None if config.by == "sparse_channel" else CommonWidth(sources, None)
        if config.by == "sparse_token":
            pooled = _pooled(first, config.pool)
            parts = {other: first if other == name else pooled for other in sources}
            tokens = sum(part.tokens for part in parts.values())
            self.output = FeatureSpec(tokens, first.dim, None if len(parts) > 1 else first.grid, parts)
            return
        self.groups = min(config.groups, len(sources))
        parts = dict(sources)
        if config.by == "dense_channel":
            parts = {name: first} | {f"group_{group}": first for group in range(1, self.groups + 1)}
        self.output = FeatureSpec(first.tokens, sum(part.dim for part in parts.values()), first.grid, parts)

    def forward(self, sources: dict[str, Tensor]) -> FusionOutput:
        """Returns [I, N_out, D_out] for {source: [I, N, D_source]}."""
        if self.common_width is None:
            return FusionOutput(torch.cat(list(sources.values()), dim=-1))
        first, *others = values = self.common_width(sources)
        if self.config.by == "sparse_token":
            return FusionOutput(torch.cat([first, *(self._pool(x) for x in others)], dim=1))
        cuts = [group * len(values) // self.groups for group in range(self.groups + 1)]
        means = [torch.stack(values[begin:end]).mean(0) for begin, end in pairwise(cuts)]
        return FusionOutput(torch.cat([first, *means], dim=-1))

    def _pool(self, features: Tensor) -> Tensor:
        """Returns [I, N_pooled, D] for features [I, N, D]: the tokens before the map, and the means of its blocks."""
        first, pool = next(iter(self.sources.values())), self.config.pool
        if first.grid is None:
            means = nn.functional.avg_pool1d(features.transpose(1, 2), pool**2, ceil_mode=True)
            return means.transpose(1, 2)
        prefix, tokens = features[:, : first.prefix], features[:, first.prefix :]
        image = tokens.transpose(1, 2).unflatten(2, first.grid)
        means = nn.functional.avg_pool2d(image, pool, ceil_mode=True)
        return torch.cat([prefix, means.flatten(2).transpose(1, 2)], dim=1)


def _pooled(spec: FeatureSpec, pool: int) -> FeatureSpec:
    """Returns the shape of pooled features; the last blocks of a row or column may be smaller."""
    if spec.grid is None:
        return replace(spec, tokens=-(-spec.tokens // pool**2))
    grid = (-(-spec.grid[0] // pool), -(-spec.grid[1] // pool))
    return replace(spec, tokens=spec.prefix + grid[0] * grid[1], grid=grid)
