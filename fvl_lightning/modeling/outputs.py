"""The model's output class, and the output switches of transformers that it supports."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import ModelOutput
from transformers.utils import TransformersKwargs

RECORDED = ("output_attentions", "output_hidden_states")
"""Switches whose outputs are the language model's; None stands for the configuration's."""


@dataclass
class FlorenceVLOutput(ModelOutput):
    """With labels: `loss` (mean over supervised tokens), `loss_sum`, `tokens`, `correct`; `logits` [B, S, V] if wanted.

    hidden_states, attentions: of the language model, on demand: [B, S, D] per layer, [B, heads, S, S] per layer.
    diagnostics: what the fusion says of itself, such as {"mass/<source>": scalar}; dataset_sums and dataset_tokens: as
    in TokenLoss, with dataset_ids.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Any = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    loss_sum: Tensor | None = None
    tokens: Tensor | None = None
    correct: Tensor | None = None
    dataset_sums: Tensor | None = None
    dataset_tokens: Tensor | None = None
    diagnostics: dict[str, Tensor] | None = None


def language_model_inputs(kwargs: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Keywords that `forward` does not name itself -> those for the language model.

    Args:
        kwargs: those of transformers' models; None stands for nothing.
        config: the model's, for switches that are not among `kwargs`.

    Raises:
        TypeError: a keyword that nobody would use.
        ValueError: attentions of an implementation that has none.
    """
    inputs = {name: value for name, value in kwargs.items() if value is not None}
    if unknown := sorted(set(inputs) - TransformersKwargs.__optional_keys__ - {"cache_position"}):
        raise TypeError(f"forward() has no use for {', '.join(unknown)}")
    for name in RECORDED:
        if inputs.setdefault(name, getattr(config, name)) in (None, False):
            del inputs[name]
    text = config.get_text_config()
    if "output_attentions" in inputs and text._attn_implementation != "eager":
        raise ValueError(
            f"output_attentions needs attn_implementation='eager', the language model's is {text._attn_implementation}"
        )
    return inputs
