"""Learned queries that attend to the image, so that there are as many tokens as queries.

The layers are those of Flamingo's Perceiver Resampler (arXiv 2204.14198; BLIP-2's Q-Former, arXiv 2301.12597, also has
learned queries). Positions are of two dimensions, as in Qwen-VL (arXiv 2308.12966).
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fvl_lightning.core.config.fields import number
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.registry import register
from fvl_lightning.core.types import FeatureSpec
from fvl_lightning.projectors.base import Projector

Run = tuple[int, tuple[int, int] | None]
"""Tokens that follow each other, and their map; None where their order is all that is known of their places."""


@register("projector", "resampler")
class ResamplerProjector(Projector):
    """y = W_out LN(z_L), where `queries` learned vectors z_0 read the features in L layers.

    A layer is z' = z + Attention(LN(z), [f; LN(z)]), and then z' + MLP(LN(z')). Each query attends to the features
    f = LN(W_in x) + p and to all queries. p is a sine and cosine of row and column, fixed; tokens without a map have
    their order instead of both. Each of several maps that follow each other (`token_concat`), and the tokens before a
    map, have a learned vector in addition.
    """

    @dataclass
    class Config:
        """Fields of the projector."""

        queries: int = number(64, at_least=1)
        """Number of queries, and so of image tokens in the language model."""
        depth: int = number(3, at_least=1)
        """Number of layers."""
        heads: int = number(8, at_least=1)
        """Attention heads; must divide the width."""
        width: int | None = number(None, at_least=1)
        """Width of the queries; null for the language model's, but at most 1024."""

    def __init__(self, config: Config, features: FeatureSpec, dim: int) -> None:
        super().__init__(config, features, dim)
        width = config.width or min(dim, 1024)
        if width % config.heads:
            raise ConfigError(f"projector.heads: {config.heads} heads do not divide the width {width}")
        self.tokens = config.queries
        self.runs = _runs(features)
        self.input = nn.Linear(features.dim, width)
        self.input_norm = nn.LayerNorm(width)
        self.marks = nn.Embedding(len(self.runs), width) if len(self.runs) > 1 else None
        self.queries = nn.Embedding(config.queries, width)
        self.layers = nn.ModuleList(_Layer(width, config.heads) for _ in range(config.depth))
        self.output_norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, dim)

    @classmethod
    def token_options(cls, config: Any, features: FeatureSpec) -> dict[int, Any]:
        """See Projector: any number up to that of the features."""
        return {count: replace(config, queries=count) for count in range(1, features.tokens + 1)}

    def image_tokens(self) -> FeatureSpec:
        """See Projector: queries have no place in the image."""
        return FeatureSpec(self.tokens, self._dim, None)

    def forward(self, features: Tensor) -> Tensor:
        """Returns [I, queries, D] for [I, N, D_in]."""
        read = self.input_norm(self.input(features))
        read = read + torch.cat([_positions(*run, read) for run in self.runs])
        if self.marks is not None:
            marks = [self.marks.weight[k].expand(tokens, -1) for k, (tokens, _) in enumerate(self.runs)]
            read = read + torch.cat(marks)
        x = self.queries.weight.expand(len(features), -1, -1)
        for layer in self.layers:
            x = layer(x, read)
        return self.output(self.output_norm(x))


class _Layer(nn.Module):
    """Attention of the queries to features and queries, and an MLP of four times the width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """Returns [I, M, W] for queries [I, M, W] and features [I, N, W]."""
        queries = self.norm(x)
        key, value = self.key_value(torch.cat([features, queries], dim=1)).chunk(2, dim=-1)
        split = [y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (self.query(queries), key, value)]
        x = x + self.out(nn.functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(-2))
        return x + self.mlp(self.mlp_norm(x))


def _runs(features: FeatureSpec) -> list[Run]:
    """Returns the maps among the tokens in their order, and the tokens before each of them."""
    runs: list[Run] = []
    for spec in features.parts_on_tokens or (features,):
        rest = spec.tokens - spec.prefix
        runs += [(spec.prefix, None), (rest, spec.grid)] if spec.prefix else [(rest, spec.grid)]
    return runs


def _positions(tokens: int, grid: tuple[int, int] | None, like: Tensor) -> Tensor:
    """Returns [tokens, W], in type and device of `like` [..., W]: half of the width for rows, half for columns."""
    dim = like.shape[-1]
    places = torch.arange(tokens, device=like.device, dtype=torch.float32)
    if grid is None:
        return _waves(places, dim).to(like.dtype)
    rows, columns = places.div(grid[1], rounding_mode="floor"), places.remainder(grid[1])
    return torch.cat([_waves(rows, dim // 2), _waves(columns, dim - dim // 2)], dim=-1).to(like.dtype)


def _waves(places: Tensor, dim: int) -> Tensor:
    """Returns [N, dim] for places [N]: sines, then cosines, of wavelengths from 2 pi to 10000 * 2 pi."""
    steps = torch.arange((dim + 1) // 2, device=places.device, dtype=torch.float32)
    angles = places[:, None] * 10000.0 ** (-2 * steps / max(dim, 1))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[:, :dim]
