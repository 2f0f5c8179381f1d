"""Token integration (arXiv 2412.04424, section 3.3): the language model gets the tokens of all sources."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fvl_lightning.core.config.fields import number
from fvl_lightning.core.registry import register
from fvl_lightning.core.types import FeatureSpec, FusionOutput
from fvl_lightning.fusions.base import CommonWidth, Fusion


@register("fusion", "token_concat")
class TokenConcatFusion(Fusion):
    """Concatenates the sources on the token axis, which gives K times the tokens per image."""

    @dataclass
    class Config:
        """Fields of the fusion."""

        dim: int | None = number(None, at_least=1)
        """Width to which the sources are projected; null for the first source's."""

    def __init__(self, config: Config, sources: dict[str, FeatureSpec]) -> None:
        super().__init__(config, sources)
        self.common_width = CommonWidth(sources, config.dim)
        parts = {name: replace(spec, dim=self.common_width.dim) for name, spec in sources.items()}
        # The sources follow each other, so the tokens no longer form one map.
        self.output = FeatureSpec(sum(spec.tokens for spec in parts.values()), self.common_width.dim, None, parts)

    def forward(self, sources: dict[str, Tensor]) -> FusionOutput:
        """Returns [I, K*N, D] for {source: [I, N, D_source]}."""
        return FusionOutput(torch.cat(self.common_width(sources), dim=1))
