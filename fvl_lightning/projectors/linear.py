"""One linear layer (LLaVA, arXiv 2304.08485)."""

from dataclasses import dataclass

from torch import Tensor, nn

from fvl_lightning.core.registry import register
from fvl_lightning.core.types import FeatureSpec
from fvl_lightning.projectors.base import Projector


@register("projector", "linear")
class LinearProjector(Projector):
    """y = W x + b."""

    @dataclass
    class Config:
        """Nothing to set."""

    def __init__(self, config: Config, features: FeatureSpec, dim: int) -> None:
        super().__init__(config, features, dim)
        self.layer = nn.Linear(features.dim, dim)

    def forward(self, features: Tensor) -> Tensor:
        """Returns [I, N, D] for [I, N, D_in]."""
        return self.layer(features)
