"""Image features that enter the language model in front of its inner blocks, at the places of the image tokens.

DeepStack (arXiv 2406.04334; Qwen3-VL) adds them to the hidden states. The modular internal fusion of arXiv 2503.06063
lets the hidden states attend to them, behind a gate as in Flamingo (arXiv 2204.14198). One hook on each block does
both, for any causal model with a list of blocks.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fvl_lightning.core.config.loading import Choice
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.fusions.base import Fusion

HEAD_WIDTH = 64
"""The width of a head of cross-attention, where it divides the language model's width."""


class InnerLayers(nn.Module):
    """Projects the inner features of a fusion, and puts them into the hidden states in front of the blocks.

    Args:
        fusion: declares the features, by the number of the block.
        projector: the choice of the model's projector; every block gets one of its own.
        blocks: the blocks of the language model.
        tokens: the number of image tokens in the rows.
        dim: the width of the language model.

    Raises:
        ConfigError: there is no such block, or the projected features are not one per image token.
    """

    def __init__(
        self, fusion: Fusion, projector: Choice, blocks: Sequence[nn.Module], tokens: int, dim: int
    ) -> None:
        super().__init__()
        for layer in fusion.inner_layers:
            if not 0 < layer < len(blocks):
                raise ConfigError(
                    f"fusion: features for block {layer} of a language model of {len(blocks)} blocks, counted from 0; "
                    f"allowed are 1 to {len(blocks) - 1}, since block 0 gets the placeholders"
                )
        specs = {str(number): spec for number, spec in sorted(fusion.inner_layers.items())}
        self.projectors = nn.ModuleDict(
            {number: projector.component(projector.config, spec, dim) for number, spec in specs.items()}
        )
        attends = fusion.injection == "cross_attention"
        self.attentions = nn.ModuleDict({number: GatedCrossAttention(dim) for number in specs} if attends else {})
        for number, one in self.projectors.items():
            if not attends and one.tokens != tokens:
                raise ConfigError(
                    f"fusion: {one.tokens} features of an image for block {number}, but the image has {tokens} tokens "
                    "to add them to"
                )
        self.tokens = tokens
        self._places: Tensor | None = None
        self._features: dict[str, Tensor] = {}

    def project(self, features: dict[int, Tensor]) -> dict[str, Tensor]:
        """Returns {number: [I, N_k, D]} for the fusion's features {number: [I, N_k, D_k]}."""
        return {number: projector(features[int(number)]) for number, projector in self.projectors.items()}

    def show(self, is_image: Tensor, features: dict[str, Tensor]) -> None:
        """Sets what the blocks get in the next pass of the language model.

        Args:
            is_image: [B, S], where the image tokens stand, image by image in reading order.
            features: {number: [I, N_k, D]}; none for a pass without images.
        """
        self._features = features
        self._places = is_image.flatten().nonzero().squeeze(1) if features else None

    def hide(self) -> None:
        """Forgets the features, once no pass and no recomputation for a backward pass needs them."""
        self._features, self._places = {}, None

    def enter(self, number: str, hidden: Tensor) -> Tensor:
        """Returns hidden states [B, S, D] with the features of block `number`, if any, at the places of the images."""
        if self._places is None or number not in self._features:
            return hidden
        features, places = self._features[number].to(hidden), self._places.to(hidden.device)
        if number in self.attentions:
            queries = hidden.flatten(0, 1)[places].unflatten(0, (len(features), self.tokens))
            features = self.attentions[number](queries, features)
        return hidden.flatten(0, 1).index_add(0, places, features.flatten(0, 1)).view_as(hidden)


class EnterBlock:
    """A forward pre-hook of a block: the hidden states enter it with the model's features for it.

    It finds the features through the model, which may have another InnerLayers later (peft replaces what it trains in
    full), and it is an object, so that the hook of a copied model belongs to the copy.

    Args:
        model: a model with `inner_layers`.
        number: the number of the block.
    """

    def __init__(self, model: Any, number: str) -> None:
        self.model, self.number = model, number

    def __call__(
        self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the arguments of the block with other hidden states."""
        inner = self.model.inner_layers
        if args:
            return (inner.enter(self.number, args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": inner.enter(self.number, kwargs["hidden_states"])}


class GatedCrossAttention(nn.Module):
    """tanh(gate) * Attention(LayerNorm(hidden), features), with a gate that begins at zero (Flamingo).

    Args:
        dim: the width of hidden states and features.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads = dim // HEAD_WIDTH if dim % HEAD_WIDTH == 0 else 1
        self.norm = nn.LayerNorm(dim)
        self.query, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.gate = Gate()

    def forward(self, hidden: Tensor, features: Tensor) -> Tensor:
        """Returns [I, N, D], to be added to hidden states [I, N, D], for features [I, M, D]."""
        query = self.query(self.norm(hidden))
        key, value = self.key_value(features).chunk(2, dim=-1)
        query, key, value = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.gate(self.out(attended.transpose(1, 2).flatten(2)))


class Gate(nn.Module):
    """Multiplies by the tanh of one learned number, which begins at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the number to zero."""
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Returns x of the same shape."""
        return x * self.weight.tanh()
