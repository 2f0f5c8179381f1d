"""Gates over sources at each position.

No results with Florence-2 features are published; MoVA (arXiv 2404.13046) and IGVA (arXiv 2501.08443) gate other
encoders.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fvl_lightning.core.config.fields import number
from fvl_lightning.core.registry import register
from fvl_lightning.core.types import FeatureSpec, FusionOutput
from fvl_lightning.fusions.base import Fusion, source_weights


@register("fusion", "gated")
class GatedFusion(Fusion):
    """sum_k gate_k(x_1..x_K) * W_k x_k: projects each source, and weights it by gates that depend on all sources.

    With `condition: question` a linear map of the question's embedding is added to the gates' logits.
    """

    @dataclass
    class Config:
        """Fields of the fusion."""

        gate: Literal["softmax", "sigmoid"] = "softmax"
        """softmax: the gates of a position sum to one; sigmoid: they are independent."""
        condition: Literal["question"] | None = None
        """question: the gates read the question too; null: they do not."""
        dim: int | None = number(None, at_least=1)
        """Width of the output; null for the first source's."""

    def __init__(self, config: Config, sources: dict[str, FeatureSpec], question_dim: int | None = None) -> None:
        super().__init__(config, sources, question_dim)
        first = next(iter(sources.values()))
        dim = config.dim if config.dim is not None else first.dim
        self.values = nn.ModuleDict({name: nn.Linear(spec.dim, dim) for name, spec in sources.items()})
        self.gates = nn.Linear(sum(spec.dim for spec in sources.values()), len(sources))
        self.question = nn.Linear(question_dim, len(sources), bias=False) if question_dim is not None else None
        self.output = FeatureSpec(first.tokens, dim, first.grid)

    @classmethod
    def is_conditioned(cls, config: Config) -> bool:
        """Returns whether the gates read the question."""
        return config.condition == "question"

    def forward(self, sources: dict[str, Tensor], question: Tensor | None = None) -> FusionOutput:
        """Returns [I, N, D] and the weight of each source for {source: [I, N, D_source]}; `question` is [I, C]."""
        logits = self.gates(torch.cat(list(sources.values()), dim=-1))
        if self.question is not None:
            logits = logits + self.question(question).unsqueeze(1)
        gates = logits.softmax(-1) if self.config.gate == "softmax" else logits.sigmoid()
        values = torch.stack([self.values[name](x) for name, x in sources.items()], dim=-1)
        features = (values * gates.unsqueeze(-2)).sum(-1)
        return FusionOutput(features, source_weights(gates / gates.sum(-1, keepdim=True), self.sources))
