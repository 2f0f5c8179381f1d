"""Tokens of the sources in turn, as in LEO (arXiv 2501.06986): the language model gets the tokens of all sources."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fvl_lightning.core.config.fields import number
from fvl_lightning.core.registry import register
from fvl_lightning.core.types import FeatureSpec, FusionOutput
from fvl_lightning.fusions.base import Fusion


@register("fusion", "interleave")
class InterleaveFusion(Fusion):
    """[W_1 x_1[1], ..., W_K x_K[1], W_1 x_1[2], ..., W_K x_K[2], ...], where x_k[n] is token n of source k.

    It has K times the tokens per image, as `token_concat`, but the tokens of one place are neighbours.
    """

    @dataclass
    class Config:
        """Fields of the fusion."""

        dim: int | None = number(None, at_least=1)
        """Width to which each source has a linear map; null for the first source's."""

    def __init__(self, config: Config, sources: dict[str, FeatureSpec]) -> None:
        super().__init__(config, sources)
        first = next(iter(sources.values()))
        dim = config.dim if config.dim is not None else first.dim
        self.projections = nn.ModuleDict({name: nn.Linear(spec.dim, dim) for name, spec in sources.items()})
        # Several tokens share a place, so the tokens no longer form one map.
        self.output = FeatureSpec(len(sources) * first.tokens, dim, first.grid if len(sources) == 1 else None)

    def forward(self, sources: dict[str, Tensor]) -> FusionOutput:
        """Returns [I, N*K, D] for {source: [I, N, D_source]}."""
        values = [self.projections[name](x) for name, x in sources.items()]
        return FusionOutput(torch.stack(values, dim=2).flatten(1, 2))
