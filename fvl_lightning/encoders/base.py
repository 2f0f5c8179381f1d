"""What a vision encoder must be."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from fvl_lightning.core.types import FeatureSpec


class Encoder(nn.Module, ABC):
    """Turns images into named feature sources, in a fixed order.

    A subclass is built from a *resolved* Config (see `resolve`), so that building needs no file, and sets the fields
    below before any weight is loaded.
    """

    specs: dict[str, FeatureSpec]
    """Shape of each source, in order."""
    image_size: int
    """Pixels per side."""
    mean: tuple[float, float, float]
    """Per channel, for values in [0, 1]."""
    std: tuple[float, float, float]
    tasks: tuple[str, ...]
    """The prompts under which the encoder reads an image, in order; empty for an encoder without prompts."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def resolve(cls, config: Any) -> Any:
        """A Config that holds everything `__init__` needs: what files and hub ids say is read here, and only here."""
        return config

    def load_pretrained(self) -> None:
        """Fills the weights from `config.pretrained`, if there is one; call once, after initialisation."""

    def feature_state(self) -> dict[str, Tensor]:
        """The tensors that decide the features, by their names in `state_dict()`; hashes and caches go by them.

        All of them, unless a subclass has some that no feature depends on, such as a decoder's.
        """
        return self.state_dict()

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raises ConfigError where an encoder that writes text cannot write that tokenizer's."""

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """The repeated blocks, the units of sharding and of activation checkpointing."""

    @abstractmethod
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """[I, 3, P, P] -> {source: [I, N, D]} as `specs` says."""
