"""The base class of language models."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn


class LanguageModel(nn.Module, ABC):
    """Embeds token ids, turns embeddings into hidden states, and hidden states into logits.

    `forward` returns hidden states rather than logits, since the loss needs the logits of supervised positions only.
    A subclass is built from a *resolved* Config (see `resolve`).
    """

    dim: int
    """Width of the token table, and so of image tokens."""
    image_divisor: float = 1.0
    """Image tokens are divided by it before `forward`, which multiplies all embeddings by it; so they enter the layers
    as the projector made them, whatever the model does to its embeddings."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def resolve(cls, config: Any) -> Any:
        """Returns a Config with everything that `__init__` needs; only this method reads files and hub ids for it."""
        return config

    @property
    def fills_all_weights(self) -> bool:
        """Returns whether `load_pretrained` sets every parameter, so that none is given an initial value before."""
        return False

    def load_pretrained(self) -> None:
        """Loads the weights of `config.pretrained`, if it is set; call it once, after initialisation."""

    def check(self) -> None:
        """Raises ConfigError if `embed`, `forward` and `logits` do not give the model's logits; needs its weights."""

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """Returns the repeated blocks, which are the units of sharding and of activation checkpointing."""

    def token_table(self) -> nn.Module | None:
        """Returns the module of the token embeddings, if `embed` calls it and nothing else reads its weights.

        It is then a unit of sharding of its own. None leaves it with the parameters that stay gathered.
        """
        return None

    @abstractmethod
    def embed(self, token_ids: Tensor) -> Tensor:
        """Returns embeddings [B, S, D] of token ids [B, S], as `forward` takes them."""

    @abstractmethod
    def forward(self, embeddings: Tensor, **inputs: Any) -> Any:
        """Returns an output with `last_hidden_state` [B, S, D], and with a cache also `past_key_values`."""

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Returns logits [..., V] of hidden states [..., D]."""
