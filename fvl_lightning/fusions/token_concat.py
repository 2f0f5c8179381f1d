"""Token integration (arXiv 2412.04424, section 3.3): every source keeps its tokens, the language model sees all."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fvl_lightning.core.config.fields import number
from fvl_lightning.core.registry import register
from fvl_lightning.core.types import FeatureSpec, FusionOutput
from fvl_lightning.fusions.base import CommonWidth, Fusion


@register("fusion", "token_concat")
class TokenConcatFusion(Fusion):
    """Puts the sources one after the other on the token axis, at K times the tokens per image."""

    @dataclass
    class Config:
        """Fields of the fusion."""

        dim: int | None = number(None, at_least=1)
        """Width the sources are brought to; null for the first source's."""

    def __init__(self, config: Config, sources: dict[str, FeatureSpec]) -> None:
        super().__init__(config, sources)
        self.common_width = CommonWidth(sources, config.dim)
        # The sources follow each other, so the tokens no longer form one map.
        self.output = FeatureSpec(sum(spec.tokens for spec in sources.values()), self.common_width.dim, None)

    def forward(self, sources: dict[str, Tensor]) -> FusionOutput:
        """{source: [I, N, D_source]} -> [I, K*N, D]."""
        return FusionOutput(torch.cat(self.common_width(sources), dim=1))
