"""The output class of the model, and the keyword arguments of transformers that it supports."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import ModelOutput
from transformers.utils import TransformersKwargs

OUTPUT_SWITCHES = ("output_attentions", "output_hidden_states")
"""Switches for outputs of the language model; None stands for the value of the configuration."""


@dataclass
class FlorenceVLOutput(ModelOutput):
    """The outputs of a forward pass; what was not asked for is None.

    With labels: `loss` (mean over supervised tokens), `loss_sum`, `tokens` and `correct`; with dataset_ids also
    `dataset_sums` and `dataset_tokens`, as in TokenLoss. On demand: `logits` [B, S, V], and the language model's
    `hidden_states` [B, S, D] and `attentions` [B, heads, S, S] of each layer. `diagnostics` are those of the fusion,
    such as {"mass/<source>": scalar}.
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
    """Returns the keyword arguments for the language model.

    Args:
        kwargs: keyword arguments of transformers' models that `forward` does not name; None counts as absent.
        config: the model's configuration, for switches that are not in `kwargs`.

    Raises:
        TypeError: an unknown keyword argument.
        ValueError: attentions are asked of an implementation that does not return them.
    """
    inputs = {name: value for name, value in kwargs.items() if value is not None}
    if unknown := sorted(set(inputs) - TransformersKwargs.__optional_keys__ - {"cache_position"}):
        raise TypeError(f"forward() has no use for {', '.join(unknown)}")
    for name in OUTPUT_SWITCHES:
        if inputs.setdefault(name, getattr(config, name)) in (None, False):
            del inputs[name]
    text = config.get_text_config()
    if "output_attentions" in inputs and text._attn_implementation != "eager":
        raise ValueError(
            f"output_attentions needs attn_implementation='eager', the language model's is {text._attn_implementation}"
        )
    return inputs
