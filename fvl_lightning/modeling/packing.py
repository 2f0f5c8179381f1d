"""Packed rows: several documents in one row, of which each must see itself alone.

transformers makes a block-diagonal mask of position_ids that restart, but only without an attention mask and without a
cache. With either of them, and in models that know no position_ids, documents see each other and nothing says so.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fvl_lightning.core.errors import ConfigError

DOCUMENT = 8
"""Tokens of a document of the self-tests."""
EXACT, ROUNDED = 1e-5, 5e-2
"""Largest relative difference (Euclidean) taken for rounding, in float32 and in anything coarser.

Rounding moves float32 logits by some 5e-7 and bfloat16 ones of 24 layers by 1e-2; a document that sees another moves
them by 5e-2 to 1. What moves them by less than ROUNDED is therefore found in float32 only.
"""
SUITABLE = "llama, phi3 or qwen2"


def is_packed(position_ids: Tensor, attention_mask: Tensor | None = None) -> bool:
    """Whether positions [B, S] restart within a row; steps from or to a pad (0 in a mask [B, S]) do not count."""
    restarts = position_ids.diff(dim=-1) != 1
    if attention_mask is not None:
        real = attention_mask[:, -position_ids.shape[1] :].bool()
        restarts = restarts & real[:, 1:] & real[:, :-1]
    return bool(restarts.any())


def cache_for(
    position_ids: Tensor | None, attention_mask: Any, past_key_values: Any, use_cache: bool | None
) -> bool | None:
    """`use_cache` as the language model should be given it: False for packed rows, as it came for others.

    Raises:
        ValueError: packed rows with an attention mask or a cache, which would let documents see each other.
    """
    if position_ids is None or position_ids.shape[-1] == 1:
        return use_cache
    if attention_mask is None and past_key_values is None and use_cache is False:
        return use_cache  # right for any positions, and looking at them would make the host wait for the device
    plain = attention_mask is None or (isinstance(attention_mask, Tensor) and attention_mask.ndim == 2)
    if not plain and past_key_values is not None:
        return use_cache  # what generation has made for a static cache, pads included
    if not is_packed(position_ids, attention_mask if plain else None):
        return use_cache
    if attention_mask is not None or past_key_values is not None or use_cache:
        raise ValueError(
            "position_ids that restart within a row (packed documents) need attention_mask=None, past_key_values=None "
            "and use_cache=False, with a mask or a cache the documents of a row would see each other"
        )
    return False


def check_causal(model: Any) -> None:
    """Runs the whole model on two rows of a few tokens that differ in the last; earlier outputs must not.

    Everything goes through the root's forward, so that sharded models can be asked too; modes and random numbers stay
    as they were.

    Raises:
        ConfigError: a language model that sees later tokens.
    """
    rows = _random_words(model)[:1].repeat(2, 1)
    rows[1, -1] = (rows[1, -1] + 1) % (_vocabulary(model) - 1)
    with _undisturbed(model):
        first, second = _logits(model, rows, _positions(rows))[:, :-1]
    if _differ(first, second):
        raise ConfigError(
            f"language_model.model: {_model_type(model)} sees later tokens, so it would copy the answers that it is "
            f"to learn; take a causal model such as {SUITABLE}"
        )


def check_packing(model: Any) -> None:
    """Runs the whole model on two documents of a few tokens in one row, and in rows of their own; outputs must agree.

    As in `check_causal` nothing is left changed. Rotary embeddings that stretch with the longest document of a batch
    (longrope, dynamic) do so for packed rows as for padded ones, and are not looked at here.

    Raises:
        ConfigError: a language model whose documents see each other.
    """
    documents = _random_words(model)
    positions = _positions(documents)
    with _undisturbed(model):
        alone = _logits(model, documents, positions).flatten(0, 1)
        packed = _logits(model, documents.view(1, -1), positions.view(1, -1))[0]
    if _differ(packed, alone):
        raise ConfigError(
            f"data.packing: documents in one row see each other in language model {_model_type(model)}; write "
            f"data.packing=none, or take a model such as {SUITABLE}"
        )


@contextmanager
def _undisturbed(model: Any) -> Iterator[None]:
    """Eval mode, no gradients, no autocast; modes and random numbers are put back."""
    device = _device(model)
    assert device.type != "meta", "a model without values has no outputs to compare"
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with (
            torch.no_grad(),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            torch.autocast(device.type, enabled=False),
        ):
            yield
    finally:
        for module in training:
            module.training = True


def _device(model: Any) -> torch.device:
    return model.get_input_embeddings().weight.device


def _model_type(model: Any) -> str:
    return model.config.get_text_config().model_type


def _vocabulary(model: Any) -> int:
    return model.config.get_text_config().vocab_size


def _random_words(model: Any) -> Tensor:
    """Two documents [2, DOCUMENT] of numbers below V - 1: one id, the image placeholder's, is left out."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(_vocabulary(model) - 1, (2, DOCUMENT), generator=generator)


def _positions(documents: Tensor) -> Tensor:
    return torch.arange(documents.shape[1]).expand_as(documents).contiguous()


def _logits(model: Any, words: Tensor, positions: Tensor) -> Tensor:
    token_ids = words + (words >= model.config.image_token_id)
    device = _device(model)
    return model(token_ids.to(device), position_ids=positions.to(device), use_cache=False).logits


def _differ(found: Tensor, wanted: Tensor) -> bool:
    """Whether two results of one computation differ by more than rounding."""
    exact = found.dtype in (torch.float32, torch.float64) and torch.get_float32_matmul_precision() == "highest"
    difference = (found - wanted).float().norm() / wanted.float().norm()
    return bool(difference > (EXACT if exact else ROUNDED))
