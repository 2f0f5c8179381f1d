"""A mixture of sources: a router chooses the few sources that an image needs, and only these are computed."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fvl_lightning.core.config.fields import number
from fvl_lightning.core.registry import register
from fvl_lightning.core.types import FeatureSpec, FusionOutput
from fvl_lightning.fusions.base import Fusion, source_weights


@register("fusion", "moe")
class MoeFusion(Fusion):
    """sum over the chosen sources k of r_k W_k x_k, where r is the softmax over the `top` largest scores of the router.

    The router scores the sources from the mean of the first one, which is always computed. MoVA (arXiv 2404.13046) and
    SCOPE (arXiv 2510.12974) route between encoders. With `top: 1` the weight is always 1; the router then learns
    through the gradient of the chosen source's probability (straight-through).
    """

    routed = True

    @dataclass
    class Config:
        """Fields of the fusion."""

        top: int = number(2, at_least=1)
        """Largest number of sources that are computed for an image."""
        condition: Literal["image", "question"] = "image"
        """question: the router reads the question too."""
        dim: int | None = number(None, at_least=1)
        """Width of the output; null for the first source's."""

    def __init__(self, config: Config, sources: dict[str, FeatureSpec], question_dim: int | None = None) -> None:
        super().__init__(config, sources, question_dim)
        first = next(iter(sources.values()))
        dim = config.dim if config.dim is not None else first.dim
        self.experts = nn.ModuleDict({name: nn.Linear(spec.dim, dim) for name, spec in sources.items()})
        self.router = nn.Linear(first.dim + (question_dim or 0), len(sources))
        self.output = FeatureSpec(first.tokens, dim, first.grid)

    @classmethod
    def is_conditioned(cls, config: Config) -> bool:
        """Returns whether the router reads the question."""
        return config.condition == "question"

    def route(self, sources: dict[str, Tensor], question: Tensor | None) -> Tensor:
        """Returns weights [I, K] that add up to 1, zero for all but `top` sources of an image."""
        first = next(iter(sources.values())).mean(1)
        scores = self.router(first if question is None else torch.cat([first, question.to(first)], dim=-1))
        values, chosen = scores.topk(min(self.config.top, len(self.sources)), dim=-1)
        if self.config.top == 1:
            probability = scores.softmax(-1).gather(-1, chosen)
            return torch.zeros_like(scores).scatter(-1, chosen, 1 + (probability - probability.detach()))
        return torch.zeros_like(scores).scatter(-1, chosen, values.softmax(-1))

    def forward(  # type: ignore[override]
        self, sources: dict[str, Tensor], routes: Tensor, question: Tensor | None = None
    ) -> FusionOutput:
        """Returns [I, N, D] and the weight of each source for {source: [I, N, D_source]} and routes [I, K]."""
        weights = routes.unbind(-1)
        values = [self.experts[name](x) for name, x in sources.items()]
        features = sum(weight.view(-1, 1, 1) * value for weight, value in zip(weights, values, strict=True))
        return FusionOutput(features, source_weights(routes, self.sources))
