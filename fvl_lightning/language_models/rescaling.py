"""Scales of the logits and of the input embeddings of transformers' models, by the fields of their configurations.

Granite divides its logits, Cohere multiplies them, Gemma 2 caps them; Granite multiplies whatever enters its layers. A
value that changes nothing is None or 1. `CausalLanguageModel.check` refuses a model that computes anything else.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _multiply(logits: Tensor, factor: float) -> Tensor:
    return logits * factor


def _divide(logits: Tensor, divisor: float) -> Tensor:
    return logits / divisor


def _cap(logits: Tensor, bound: float) -> Tensor:
    return torch.tanh(logits / bound) * bound


LOGIT_FIELDS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "logit_scale": _multiply,
    "lm_head_multiplier": _multiply,
    "logits_scaling": _divide,
    "final_logit_softcapping": _cap,
    "logits_soft_cap": _cap,
}
"""{field: what the model makes of the output of its head, given the field's value}."""
EMBEDDING_FIELDS = ("embedding_multiplier", "embedding_scale")
"""Fields with the factor by which a model multiplies its input embeddings, those of images too, before the layers."""


def rescale_logits(logits: Tensor, config: Any) -> Tensor:
    """Returns the model's logits [..., V] of its head's output [..., V]; the same tensor if it changes nothing."""
    for name, rescale in LOGIT_FIELDS.items():
        if (value := _factor(config, name)) is not None:
            logits = rescale(logits, value)
    return logits


def embedding_multiplier(config: Any) -> float:
    """Returns the factor by which the model multiplies its `inputs_embeds`.

    A table that scales its own output, such as Gemma's, is no such factor: images do not pass through it.
    """
    for name in EMBEDDING_FIELDS:
        if (value := _factor(config, name)) is not None:
            return value
    return float(config.hidden_size**0.5) if getattr(config, "mup_enabled", False) else 1.0


def _factor(config: Any, name: str) -> float | None:
    """Returns the number in a field; None if it changes nothing or is no number (MPT may have a name)."""
    value = getattr(config, name, None)
    return float(value) if isinstance(value, int | float) and value != 1 else None
