"""C-Abstractor of Honeybee (arXiv 2312.06742): convolutions, adaptive average pooling, convolutions."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fvl_lightning.core.config.fields import number
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.registry import register
from fvl_lightning.core.types import FeatureSpec
from fvl_lightning.projectors.base import Projector, map_of


@register("projector", "c_abstractor")
class CAbstractorProjector(Projector):
    """y = MLP(B_2(pool(B_1(x + p)))), where B_1 and B_2 are `depth` ResNet blocks each and p is learned per place.

    A block is RegNet's with squeeze-and-excitation: SiLU(S(x) + N(W_3 E(SiLU(N(K * SiLU(N(W_1 x)))))). W_1 and W_3 are
    1 x 1 convolutions, K is 3 x 3 on each channel, N a LayerNorm over channels, S the shortcut, and
    E(x) = x sigmoid(V_2 SiLU(V_1 mean(x))). Tokens before the map are kept, which Honeybee drops: they pass through a
    linear layer in place of the blocks.
    """

    @dataclass
    class Config:
        """Fields of the projector."""

        rows: int | None = number(None, at_least=1)
        """Rows of the pooled map, whose columns keep its aspect; null for half of the features'. 12 of 24 x 24 are the
        144 tokens of the paper."""
        depth: int = number(3, at_least=1)
        """Number of blocks before the pooling, and after it."""
        hidden: int | None = number(None, at_least=1)
        """Channels of the blocks; null for the language model's width, but at most the 1024 of the paper."""

    def __init__(self, config: Config, features: FeatureSpec, dim: int) -> None:
        super().__init__(config, features, dim)
        self.grid, self.prefix = map_of(features, "c_abstractor"), features.prefix
        rows = max(1, self.grid[0] // 2) if config.rows is None else config.rows
        if rows > self.grid[0]:
            raise ConfigError(f"projector.rows: {rows} are more than the {self.grid[0]} rows of the map")
        self.pooled = rows, _columns(rows, self.grid)
        self.tokens = self.prefix + self.pooled[0] * self.pooled[1]
        self.positions = _Positions(self.grid[0] * self.grid[1], features.dim)
        hidden = config.hidden or min(dim, 1024)
        self.before = nn.Sequential(*(_Block(hidden if k else features.dim, hidden) for k in range(config.depth)))
        self.after = nn.Sequential(*(_Block(hidden, hidden) for _ in range(config.depth)))
        self.prefix_layer = nn.Linear(features.dim, hidden) if self.prefix else None
        self.layers = nn.Sequential(nn.Linear(hidden, dim), nn.SiLU(), nn.Linear(dim, dim))

    @classmethod
    def token_options(cls, config: Any, features: FeatureSpec) -> dict[int, Any]:
        """See Projector: a number for every number of rows."""
        grid = map_of(features, "c_abstractor")
        return {
            features.prefix + rows * _columns(rows, grid): replace(config, rows=rows) for rows in range(1, grid[0] + 1)
        }

    def image_tokens(self) -> FeatureSpec:
        """See Projector: the pooled map."""
        return FeatureSpec(self.tokens, self._dim, self.pooled)

    def forward(self, features: Tensor) -> Tensor:
        """Returns [I, prefix + rows * columns, D] for [I, prefix + N, D_in]."""
        prefix, tokens = features[:, : self.prefix], features[:, self.prefix :]
        image = (tokens + self.positions.weight).transpose(1, 2).unflatten(2, self.grid)
        x = self.after(_pool(self.before(image), self.pooled)).flatten(2).transpose(1, 2)
        if self.prefix_layer is not None:
            x = torch.cat([self.prefix_layer(prefix), x], dim=1)
        return self.layers(x)


class _Positions(nn.Embedding):
    """A learned vector for each place of the map, small at first."""

    def reset_parameters(self) -> None:
        """Draws values of a standard deviation of 0.02."""
        nn.init.normal_(self.weight, std=0.02)


class _ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of [I, C, H, W]."""

    def forward(self, image: Tensor) -> Tensor:
        """Returns [I, C, H, W]."""
        return super().forward(image.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Block(nn.Module):
    """A ResNet block as RegNet has it, with squeeze-and-excitation of a quarter of the channels that come in."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        squeezed = max(1, round(dim / 4))
        self.first = _convolution(dim, out, 1)
        self.spatial = _convolution(out, out, 3)
        self.squeeze, self.excite = nn.Conv2d(out, squeezed, 1), nn.Conv2d(squeezed, out, 1)
        self.last = _convolution(out, out, 1)
        self.shortcut = nn.Identity() if dim == out else _convolution(dim, out, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Returns [I, C_out, H, W] for [I, C, H, W]."""
        silu = nn.functional.silu
        x = silu(self.spatial(silu(self.first(image))))
        gate = self.excite(silu(self.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid()
        return silu(self.last(x * gate) + self.shortcut(image))


def _convolution(dim: int, out: int, size: int) -> nn.Sequential:
    """Returns a convolution with its norm: 1 x 1 over all channels, a larger one on each channel alone."""
    groups = 1 if size == 1 else dim
    return nn.Sequential(nn.Conv2d(dim, out, size, padding=size // 2, groups=groups, bias=False), _ChannelNorm(out))


def _pool(image: Tensor, grid: tuple[int, int]) -> Tensor:
    """Returns the averages [I, C, H', W'] that torch's adaptive_avg_pool2d gives of [I, C, H, W].

    That function has no deterministic gradient on CUDA.
    """
    rows, columns = (_averages(size, out, image) for size, out in zip(image.shape[2:], grid, strict=True))
    return torch.einsum("rh,cw,idhw->idrc", rows, columns, image)


def _averages(size: int, out: int, like: Tensor) -> Tensor:
    """Returns [out, size], whose row k averages places floor(k size / out) to ceil((k + 1) size / out) - 1."""
    places, k = torch.arange(size, device=like.device), torch.arange(out, device=like.device)[:, None]
    inside = (places >= k * size // out) & (places < (k * size + size + out - 1) // out)
    inside = inside.to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


def _columns(rows: int, grid: tuple[int, int]) -> int:
    """Returns the columns with which a map of so many rows keeps the aspect of `grid`."""
    return min(grid[1], max(1, round(rows * grid[1] / grid[0])))
