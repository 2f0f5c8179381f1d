"""Depth-Breadth Fusion, the paper's choice (arXiv 2412.04424, section 3.3, "channel integration")."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fvl_lightning.core.config.fields import number
from fvl_lightning.core.registry import register
from fvl_lightning.core.types import FeatureSpec, FusionOutput
from fvl_lightning.fusions.base import Fusion


@register("fusion", "concat")
class ConcatFusion(Fusion):
    """Concatenates the sources on channels, position by position; no parameters."""

    @dataclass
    class Config:
        """Fields of the fusion."""

        repeat: int = number(1, at_least=1)
        """All sources so many times: with fewer of them the width, and so the projector, of more. What more sources
        gain over this is not capacity."""

    def __init__(self, config: Config, sources: dict[str, FeatureSpec]) -> None:
        super().__init__(config, sources)
        first = next(iter(sources.values()))
        width = config.repeat * sum(spec.dim for spec in sources.values())
        self.output = FeatureSpec(first.tokens, width, first.grid)

    def forward(self, sources: dict[str, Tensor]) -> FusionOutput:
        """{source: [I, N, D_source]} -> [I, N, repeat * sum of D_source]."""
        return FusionOutput(torch.cat(list(sources.values()) * self.config.repeat, dim=-1))
