"""What a language model must be."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn


class LanguageModel(nn.Module, ABC):
    """Embeds token ids, turns embeddings into hidden states, and hidden states into logits.

    Hidden states, not logits, are what `forward` returns: the loss asks for the logits of supervised positions only.
    A subclass is built from a *resolved* Config (see `resolve`).
    """

    dim: int
    """Width of the token table, and so of image tokens."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def resolve(cls, config: Any) -> Any:
        """A Config that holds everything `__init__` needs: what files and hub ids say is read here, and only here."""
        return config

    def load_pretrained(self) -> None:
        """Fills the weights from `config.pretrained`, if there is one; call once, after initialisation."""

    def check(self) -> None:
        """Raises ConfigError where `embed`, `forward` and `logits` are not the model itself; needs its weights."""

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """The repeated blocks, the units of sharding and of activation checkpointing."""

    @abstractmethod
    def embed(self, token_ids: Tensor) -> Tensor:
        """[B, S] -> [B, S, D]."""

    @abstractmethod
    def forward(self, embeddings: Tensor, **inputs: Any) -> Any:
        """[B, S, D] -> an output with `last_hidden_state` [B, S, D] and, where a cache is used, `past_key_values`."""

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V]."""
