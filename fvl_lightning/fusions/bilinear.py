"""Low-rank bilinear pooling (arXiv 1610.04325) of all pairs of sources at each position."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fvl_lightning.core.config.fields import number
from fvl_lightning.core.registry import register
from fvl_lightning.core.types import FeatureSpec, FusionOutput
from fvl_lightning.fusions.base import Fusion


@register("fusion", "bilinear")
class BilinearFusion(Fusion):
    """Multiplies each pair of sources in `rank` channels: P(sum_k t_k + sum_{j<k} t_j * t_k), t_k = tanh(U_k x_k).

    P and U_k have biases. All pairs cost one square: sum_{j<k} t_j * t_k = ((sum_k t_k)^2 - sum_k t_k^2) / 2, as in
    factorization machines. The linear terms keep what a source says by itself.
    """

    @dataclass
    class Config:
        """Fields of the fusion."""

        rank: int | None = number(None, at_least=1)
        """Channels in which the sources are multiplied; null for the width of the output."""
        dim: int | None = number(None, at_least=1)
        """Width of the output; null for the first source's."""

    def __init__(self, config: Config, sources: dict[str, FeatureSpec]) -> None:
        super().__init__(config, sources)
        first = next(iter(sources.values()))
        dim = config.dim if config.dim is not None else first.dim
        rank = config.rank if config.rank is not None else dim
        self.factors = nn.ModuleDict({name: nn.Linear(spec.dim, rank) for name, spec in sources.items()})
        self.out = nn.Linear(rank, dim)
        self.output = FeatureSpec(first.tokens, dim, first.grid)

    def forward(self, sources: dict[str, Tensor]) -> FusionOutput:
        """Returns [I, N, D] for {source: [I, N, D_source]}."""
        factors = torch.stack([self.factors[name](x).tanh() for name, x in sources.items()])  # [K, I, N, R]
        sums = factors.sum(0)
        pairs = (sums.square() - factors.square().sum(0)) / 2
        return FusionOutput(self.out(sums + pairs))
