"""MMFuser (arXiv 2410.11829): the deepest source asks the shallow ones, and keeps its own tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fvl_lightning.core.config.fields import number
from fvl_lightning.core.registry import register
from fvl_lightning.core.types import FeatureSpec, FusionOutput
from fvl_lightning.fusions.base import CommonWidth, Fusion, check_heads


@register("fusion", "mmfuser")
class MmfuserFusion(Fusion):
    """The first source queries the tokens of all sources, and the answer is added to it with a learned scale.

    x_1 + g * (u + h * SelfAttention(LN(u))), where u = CrossAttention(LN(x_1); LN([W_1 x_1; ...; W_K x_K])).
    The first source is the deepest one. The keys are the tokens of all sources, each on its own grid; W_k is a linear
    map, or nothing where a source has the width of the first one. g and h are learned scales of the channels. The
    released code takes deformable attention, and lets g and h begin at 0.
    """

    grids = "native"

    @dataclass
    class Config:
        """Fields of the fusion."""

        heads: int = number(4, at_least=1)
        """Attention heads; must divide the width of the first source."""
        scale: float = number(0.1, above=0)
        """First value of both learned scales; at 0, the layers behind a scale would have no gradient in the first
        step."""

    def __init__(self, config: Config, sources: dict[str, FeatureSpec]) -> None:
        super().__init__(config, sources)
        self.output = next(iter(sources.values()))
        dim = self.output.dim
        check_heads(config.heads, dim)
        self.common_width = CommonWidth(sources, None)
        self.query_norm, self.key_norm, self.self_norm = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.cross_attention = TokenAttention(dim, config.heads)
        self.self_attention = TokenAttention(dim, config.heads)
        self.cross_scale, self.self_scale = ChannelScale(dim, config.scale), ChannelScale(dim, config.scale)

    def forward(self, sources: dict[str, Tensor]) -> FusionOutput:
        """Returns [I, N_1, D_1], the shape of the first source, for {source: [I, N_source, D_source]}."""
        values = self.common_width(sources)
        read = self.cross_attention(self.query_norm(values[0]), self.key_norm(torch.cat(values, dim=1)))
        normed = self.self_norm(read)
        read = read + self.self_scale(self.self_attention(normed, normed))
        return FusionOutput(values[0] + self.cross_scale(read))


class TokenAttention(nn.Module):
    """Multi-head attention of tokens to tokens.

    Args:
        dim: the width of both.
        heads: attention heads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)

    def forward(self, x: Tensor, read: Tensor) -> Tensor:
        """Returns [I, N, D] for the tokens x [I, N, D], which attend to `read` [I, M, D]."""
        key, value = self.key_value(read).chunk(2, dim=-1)
        query, key, value = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.query(x), key, value))
        return self.out(nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class ChannelScale(nn.Module):
    """Multiplies each channel by a learned number.

    Args:
        dim: the number of channels.
        value: the first value of all of them.
    """

    def __init__(self, dim: int, value: float) -> None:
        super().__init__()
        self.value = value
        self.weight = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets all scales to the first value."""
        nn.init.constant_(self.weight, self.value)

    def forward(self, x: Tensor) -> Tensor:
        """Returns [..., D] for [..., D]."""
        return x * self.weight
