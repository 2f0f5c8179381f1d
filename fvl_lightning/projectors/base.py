"""The base class of projectors."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from fvl_lightning.core.types import FeatureSpec


class Projector(nn.Module, ABC):
    """Maps fused features to the embedding space of the language model.

    Args:
        config: the Config of the projector.
        features: the shape of the fused features.
        dim: the width of the language model's embeddings.
    """

    tokens: int
    """The number of tokens per image that the language model gets."""

    def __init__(self, config: Any, features: FeatureSpec, dim: int) -> None:
        super().__init__()
        self.config = config
        self.tokens = features.tokens

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Returns [I, N, D] for [I, N, D_in]."""
