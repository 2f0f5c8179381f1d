"""An MLP for each source, and their sum, in the way of MouSi's MLP projection (arXiv 2401.17221)."""

from dataclasses import dataclass

from torch import Tensor, nn

from fvl_lightning.core.config.fields import number
from fvl_lightning.core.registry import register
from fvl_lightning.core.types import FeatureSpec, FusionOutput
from fvl_lightning.fusions.base import Fusion


@register("fusion", "mousi")
class MousiFusion(Fusion):
    """sum_k (B_k gelu(A_k x_k + a_k) + b_k) over the sources x_k."""

    @dataclass
    class Config:
        """Fields of the fusion."""

        hidden: int | None = number(None, at_least=1)
        """Width between the two layers of an MLP; null for that of the output."""
        dim: int | None = number(None, at_least=1)
        """Width of the output; null for the first source's."""

    def __init__(self, config: Config, sources: dict[str, FeatureSpec]) -> None:
        super().__init__(config, sources)
        first = next(iter(sources.values()))
        dim = config.dim if config.dim is not None else first.dim
        hidden = config.hidden if config.hidden is not None else dim
        self.mlps = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(spec.dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
                for name, spec in sources.items()
            }
        )
        self.output = FeatureSpec(first.tokens, dim, first.grid)

    def forward(self, sources: dict[str, Tensor]) -> FusionOutput:
        """Returns [I, N, D] for {source: [I, N, D_source]}."""
        first, *others = [self.mlps[name](x) for name, x in sources.items()]
        return FusionOutput(sum(others, start=first))
