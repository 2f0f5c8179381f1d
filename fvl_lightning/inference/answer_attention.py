"""The attention of an answer to its image: what its tokens look at, in each layer of the language model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.modeling.build import BuiltModel

MAX_BYTES = 2**32
"""The most memory that the attention weights of one row may take."""


@torch.no_grad()
def answer_attention(built: BuiltModel, prompt: Sequence[int], answer: Sequence[int], **inputs: Any) -> Tensor:
    """Returns the attention [layers, T] of an answer to the T image tokens of its prompt, in float32 on the CPU.

    It is the mean over heads and over the positions that predict the answer's tokens: the last one of the prompt, and
    those of the answer but its last. Over all tokens that a position sees, its weights add up to 1. A fusion's own
    attention in inner layers is not part of it.

    Args:
        built: a model in eval mode and its tokenizer.
        prompt: token ids with image placeholders expanded.
        answer: the token ids of the answer, at least one.
        inputs: the prompt's images, `pixel_values` [I, 3, P, P] or `image_sources`, and `question_ids`.

    Raises:
        ConfigError: the language model has no attention weights to return, or they take more than MAX_BYTES.
        ValueError: prompt or answer is empty, or placeholders and images do not match.
    """
    if not prompt or not answer:
        raise ValueError("attention of an answer needs a prompt and an answer of at least one token each")
    model = built.model
    token_ids = torch.tensor([[*prompt, *answer]], device=model.device)
    _check_size(model.config.get_text_config(), token_ids.shape[1])
    with eager_attention(model):
        output, _ = model.run(token_ids, use_cache=False, output_attentions=True, **inputs)
    layers, blocks = output.get("attentions") or (), len(model.language_model.blocks())
    if len(layers) != blocks or any(layer is None for layer in layers):
        raise ConfigError(f"{_family(model)} returns attention weights for {len(layers)} of its {blocks} blocks")
    asking = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
    is_image = token_ids[0] == model.config.image_token_id
    return torch.stack([layer[0, :, asking].float().mean((0, 1))[is_image.to(layer.device)].cpu() for layer in layers])


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Makes the language model compute attention weights as they are defined, and restores its attention afterwards.

    The weights of the model are not copied; other implementations of attention do not keep what they multiply.

    Raises:
        ConfigError: the language model has no other attention than its own.
    """
    text = getattr(model.language_model, "model", None)
    before = getattr(getattr(text, "config", None), "_attn_implementation", None)
    if text is None or before is None or (before != "eager" and not text._can_set_attn_implementation()):
        raise ConfigError(f"{_family(model)} has an attention of its own, which returns no attention weights")
    if before != "eager":
        text.set_attn_implementation("eager")
    try:
        yield
    finally:
        if before != "eager":
            text.set_attn_implementation(before)


def token_map(model: Any, values: Tensor) -> Tensor | None:
    """Returns values [..., N] of the N image tokens of an image as a map [..., rows, columns].

    Tokens of several sources at one place are added up, and those before a map are left out. None where the tokens have
    no place, as those of a resampler, or the maps of the sources are of several sizes.
    """
    spec = model.projector.image_tokens()
    parts = spec.parts_on_tokens or (spec,)
    grid = parts[0].grid
    if grid is None or any(part.grid != grid for part in parts):
        return None
    maps = [x[..., part.prefix :] for x, part in zip(values.split([p.tokens for p in parts], -1), parts, strict=True)]
    return torch.stack(maps).sum(0).unflatten(-1, grid)


def _check_size(config: Any, tokens: int) -> None:
    """Raises ConfigError where the attention weights of a row take too much memory."""
    heads, layers = getattr(config, "num_attention_heads", 1), getattr(config, "num_hidden_layers", 1)
    if (size := 4 * layers * heads * tokens**2) > MAX_BYTES:
        raise ConfigError(
            f"the attention weights of {tokens} tokens take {size / 2**30:.1f} GiB, at most {MAX_BYTES / 2**30:g} are "
            "taken; a projector with fewer tokens makes rows shorter"
        )


def _family(model: Any) -> str:
    """Returns the name of a language model's family, for messages."""
    return f"the language model {model.config.get_text_config().model_type}"
