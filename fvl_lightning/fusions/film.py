"""Feature-wise linear modulation: the question scales and shifts the channels of the sources."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fvl_lightning.core.registry import register
from fvl_lightning.core.types import FeatureSpec, FusionOutput
from fvl_lightning.fusions.base import Fusion


@register("fusion", "film")
class FilmFusion(Fusion):
    """(1 + scale(q)) * [x_1, ..., x_K] + shift(q) for the question q and the sources x_k (arXiv 1709.07871)."""

    conditioned = True

    @dataclass
    class Config:
        """Nothing to set."""

    def __init__(self, config: Config, sources: dict[str, FeatureSpec], question_dim: int) -> None:
        super().__init__(config, sources, question_dim)
        first = next(iter(sources.values()))
        width = sum(spec.dim for spec in sources.values())
        self.scale_and_shift = nn.Linear(question_dim, 2 * width)
        self.output = FeatureSpec(first.tokens, width, first.grid)

    def forward(self, sources: dict[str, Tensor], question: Tensor) -> FusionOutput:  # type: ignore[override]
        """Returns [I, N, sum of D_source] for {source: [I, N, D_source]} and the question [I, C]."""
        scale, shift = self.scale_and_shift(question).unsqueeze(1).chunk(2, dim=-1)
        return FusionOutput((1 + scale) * torch.cat(list(sources.values()), dim=-1) + shift)
