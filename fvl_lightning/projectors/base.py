"""What a projector must be."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from fvl_lightning.core.types import FeatureSpec


class Projector(nn.Module, ABC):
    """Carries fused features into the language model's embedding space; built from its Config, input and width."""

    tokens: int
    """Image tokens per image that the language model sees."""

    def __init__(self, config: Any, features: FeatureSpec, dim: int) -> None:
        super().__init__()
        self.config = config
        self.tokens = features.tokens

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """[I, N, D_in] -> [I, N, D]."""
