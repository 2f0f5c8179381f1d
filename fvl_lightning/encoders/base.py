"""The base class of encoders."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fvl_lightning.core.types import FeatureSpec


class Encoder(nn.Module, ABC):
    """Turns images into named feature sources, in a fixed order.

    A subclass is built from a *resolved* Config (see `resolve`), so that building reads no file, and sets the fields
    below before any weight is loaded.
    """

    specs: dict[str, FeatureSpec]
    """{source: its shape}, in order."""
    image_size: int
    """Pixels per side."""
    mean: tuple[float, float, float]
    """The mean per channel, for values in [0, 1]."""
    std: tuple[float, float, float]
    """The standard deviation per channel."""
    tasks: tuple[str, ...]
    """The names of the encoder's prompts, in order; empty for an encoder without prompts."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def resolve(cls, config: Any) -> Any:
        """Returns a Config with everything that `__init__` needs; only this method reads files and hub ids for it."""
        return config

    def load_pretrained(self) -> None:
        """Loads the weights of `config.pretrained`, if it is set; call it once, after initialisation."""

    def feature_state(self) -> dict[str, Tensor]:
        """Returns the tensors on which the features depend, by name in `state_dict()`, for hashes and caches.

        These are all tensors, unless a subclass has some without influence on the features, such as a decoder's.
        """
        return self.state_dict()

    def on_demand(self, images: Tensor) -> Callable[[str, Tensor], Tensor]:
        """Returns a function (source, rows) -> features [R, N, D] of R of the images [I, 3, P, P], for routed fusions.

        Here it runs the whole encoder on these images; encoders override it, whose sources share work.
        """
        return lambda source, rows: self(images[rows])[source]

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raises ConfigError if an encoder with a decoder cannot write this tokenizer's texts."""

    @classmethod
    def can_decode(cls) -> bool:
        """Returns whether the encoder can have a decoder, which the stage encoder_pretrain trains."""
        return cls.decode is not Encoder.decode

    def decode(self, images: Tensor, targets: Tensor) -> Tensor:
        """Returns the decoder's hidden states [I, T, L, D] for images [I, 3, P, P] and target tokens [I, T, L]."""
        raise NotImplementedError(f"{type(self).__name__} has no decoder")

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """Returns the repeated blocks, which are the units of sharding and of activation checkpointing."""

    @abstractmethod
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns {source: [I, N, D]}, with the shapes of `specs`, for images [I, 3, P, P]."""
