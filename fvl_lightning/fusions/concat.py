"""Depth-Breadth Fusion by concatenation of channels, the paper's choice (arXiv 2412.04424, section 3.3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fvl_lightning.core.config.fields import number
from fvl_lightning.core.registry import register
from fvl_lightning.core.types import FeatureSpec, FusionOutput
from fvl_lightning.fusions.base import Fusion


@register("fusion", "concat")
class ConcatFusion(Fusion):
    """Concatenates the channels of the sources at each position; it has no parameters."""

    @dataclass
    class Config:
        """Fields of the fusion."""

        repeat: int = number(1, at_least=1)
        """Number of copies of all sources. With copies, few sources give the projector as wide an input as many sources
        do, which is a control for capacity."""

    def __init__(self, config: Config, sources: dict[str, FeatureSpec]) -> None:
        super().__init__(config, sources)
        first = next(iter(sources.values()))
        parts = dict(sources)
        for copy in range(2, config.repeat + 1):
            parts |= {f"{name}_copy_{copy}": spec for name, spec in sources.items()}
        width = sum(spec.dim for spec in parts.values())
        self.output = FeatureSpec(first.tokens, width, first.grid, parts)

    def forward(self, sources: dict[str, Tensor]) -> FusionOutput:
        """Returns [I, N, repeat * sum of D_source] for {source: [I, N, D_source]}."""
        return FusionOutput(torch.cat(list(sources.values()) * self.config.repeat, dim=-1))
