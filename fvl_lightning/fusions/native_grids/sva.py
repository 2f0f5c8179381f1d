"""Spatial Vision Aggregator of Cambrian-1 (arXiv 2406.16860): queries on a map read the same place of every source."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fvl_lightning.core.config.fields import number
from fvl_lightning.core.registry import register
from fvl_lightning.core.types import FeatureSpec, FusionOutput
from fvl_lightning.fusions.base import Fusion, check_heads, resize_map, source_weights


@register("fusion", "sva")
class SvaFusion(Fusion):
    """Queries on a map read the window of every source at their place: z = x + Attention(x; windows), z + MLP(z).

    In full, z = x + O Attention(Q LN(x); K, V of the windows of all sources at the place of x), and then
    z + MLP(LN(z)). x begins as one learned vector for each place, and has `depth` such layers. The window of
    source k at a place is the m x m tokens of its own grid that cover the place; its keys and values are linear maps,
    own to source and layer, of LN(token + a learned vector for the place in the window). A grid that is no multiple of
    the map of queries is resampled to the nearest multiple. Tokens without a place, such as a pooled token, are in
    every window. Cambrian-1 also gives the queries a mean of the image, and enters the language model again.
    """

    grids = "native"

    @dataclass
    class Config:
        """Fields of the fusion."""

        side: int | None = number(None, at_least=1)
        """Side of the map of queries, whose square is the number of tokens; null for the grid of the first source."""
        depth: int = number(1, at_least=1)
        """Number of layers."""
        heads: int = number(4, at_least=1)
        """Attention heads; must divide the width."""
        dim: int | None = number(None, at_least=1)
        """Width of the queries and the output; null for the first source's."""

    def __init__(self, config: Config, sources: dict[str, FeatureSpec]) -> None:
        super().__init__(config, sources)
        first = next(iter(sources.values()))
        dim = config.dim if config.dim is not None else first.dim
        check_heads(config.heads, dim)
        side = (config.side, config.side) if config.side is not None else first.grid
        self.map = side or (1, 1)  # one query reads all of a first source without a map
        count = self.map[0] * self.map[1]
        self.sizes = {name: window_size(spec, self.map) for name, spec in sources.items()}
        self.queries = nn.Embedding(count, dim)
        self.places = nn.ModuleDict(
            {
                name: nn.Embedding(size[0] * size[1], sources[name].dim)
                for name, size in self.sizes.items()
                if size[0] * size[1] > 1
            }
        )
        self.layers = nn.ModuleList(WindowAttention(sources, dim, config.heads) for _ in range(config.depth))
        self.output = FeatureSpec(count, dim, self.map)

    def forward(self, sources: dict[str, Tensor]) -> FusionOutput:
        """Returns [I, side * side, D] and the weight of each source for {source: [I, N_source, D_source]}."""
        windows = {name: self._windows(name, x) for name, x in sources.items()}
        loose = {name: x[:, : self._loose(name)] for name, x in sources.items()}
        x = self.queries.weight.expand(len(next(iter(sources.values()))), -1, -1)
        weights = []
        for layer in self.layers:
            x, weight = layer(x, windows, loose)
            weights.append(weight)
        return FusionOutput(x, source_weights(torch.stack(weights).mean(0), self.sources))

    def _loose(self, name: str) -> int:
        """Returns the number of tokens of a source that have no place."""
        spec = self.sources[name]
        return spec.prefix if spec.grid is not None else spec.tokens

    def _windows(self, name: str, features: Tensor) -> Tensor:
        """Returns the windows [I, L, m, D_source] of features [I, N, D_source], with their learned places added."""
        spec, (rows, columns), (height, width) = self.sources[name], self.map, self.sizes[name]
        if spec.grid is None:
            return features[:, None, :0].expand(-1, rows * columns, -1, -1)
        image = features[:, spec.prefix :].transpose(1, 2).unflatten(2, spec.grid)
        image = resize_map(image, (rows * height, columns * width))
        cut = image.unflatten(3, (columns, width)).unflatten(2, (rows, height))  # [I, D, rows, height, columns, width]
        windows = cut.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)
        return windows + self.places[name].weight if name in self.places else windows


class WindowAttention(nn.Module):
    """One layer: each query attends to the tokens of its own windows, and an MLP follows.

    Args:
        sources: {source: its shape}.
        dim: the width of the queries.
        heads: attention heads.
    """

    def __init__(self, sources: dict[str, FeatureSpec], dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))
        widths = {name: spec.dim for name, spec in sources.items()}
        self.key_values = nn.ModuleDict(
            {name: nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * dim)) for name, width in widths.items()}
        )
        self.out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, x: Tensor, windows: dict[str, Tensor], loose: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the queries [I, L, D] after the layer, and the weights [I, L, heads, K] of the sources.

        Args:
            x: the queries [I, L, D].
            windows: {source: [I, L, m, D_source]}.
            loose: {source: [I, p, D_source]}, tokens that every query reads.
        """
        found = []
        for name, project in self.key_values.items():
            everywhere = project(loose[name]).unsqueeze(1).expand(-1, x.shape[1], -1, -1)
            found.append(torch.cat([everywhere, project(windows[name])], dim=2))
        sizes = [one.shape[2] for one in found]
        key, value = torch.cat(found, dim=2).unflatten(-1, (2, self.heads, -1)).unbind(3)  # [I, L, M, heads, d]
        query = self.query(x).unflatten(-1, (self.heads, -1))
        weights = (torch.einsum("ilhd,ilmhd->ilhm", query, key) * query.shape[-1] ** -0.5).softmax(-1)
        x = x + self.out(torch.einsum("ilhm,ilmhd->ilhd", weights, value).flatten(-2))
        by_source = torch.stack([one.sum(-1) for one in weights.split(sizes, dim=-1)], dim=-1)
        return x + self.mlp(x), by_source


def window_size(spec: FeatureSpec, queries: tuple[int, int]) -> tuple[int, int]:
    """Returns the height and width of a source's windows: the nearest whole number of tokens, at least one."""
    if spec.grid is None:
        return 0, 0
    return max(1, round(spec.grid[0] / queries[0])), max(1, round(spec.grid[1] / queries[1]))
