"""Average pooling over sources (arXiv 2412.04424, section 3.3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fvl_lightning.core.config.fields import number
from fvl_lightning.core.registry import register
from fvl_lightning.core.types import FeatureSpec, FusionOutput
from fvl_lightning.fusions.base import CommonWidth, Fusion


@register("fusion", "mean")
class MeanFusion(Fusion):
    """The mean of the sources at each position."""

    @dataclass
    class Config:
        """Fields of the fusion."""

        dim: int | None = number(None, at_least=1)
        """Width to which the sources are projected; null for the first source's."""

    def __init__(self, config: Config, sources: dict[str, FeatureSpec]) -> None:
        super().__init__(config, sources)
        self.common_width = CommonWidth(sources, config.dim)
        first = next(iter(sources.values()))
        self.output = FeatureSpec(first.tokens, self.common_width.dim, first.grid)

    def forward(self, sources: dict[str, Tensor]) -> FusionOutput:
        """Returns [I, N, D] for {source: [I, N, D_source]}."""
        return FusionOutput(torch.stack(self.common_width(sources)).mean(0))
