"""mlp{N}x_gelu: N linear layers with GELU between them (LLaVA-1.5 uses 2, Florence-VL 3)."""

from dataclasses import dataclass

from torch import Tensor

from fvl_lightning.core.config.fields import number
from fvl_lightning.core.registry import register
from fvl_lightning.core.types import FeatureSpec
from fvl_lightning.projectors.base import Projector, mlp


@register("projector", "mlp")
class MLPProjector(Projector):
    """`depth` linear layers with GELU between them: from D_in to the width H, and from H to D."""

    @dataclass
    class Config:
        """Fields of the projector."""

        depth: int = number(3, at_least=1)
        """Number of linear layers."""
        hidden: int | None = number(None, at_least=1)
        """Width between the layers; null for the language model's."""

    def __init__(self, config: Config, features: FeatureSpec, dim: int) -> None:
        super().__init__(config, features, dim)
        self.layers = mlp(features.dim, dim, config.depth, config.hidden)

    def forward(self, features: Tensor) -> Tensor:
        """Returns [I, N, D] for [I, N, D_in]."""
        return self.layers(features)
