"""Packed rows: several documents in one row, each of which must see only itself.

transformers makes a block-diagonal mask from position_ids that restart, but only without an attention mask and without
a cache. With either of them, and in models without position_ids, documents silently see each other. The attention
functions in `attention/` need no mask, but the boundaries of documents.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.modeling.attention.kernels import document_inputs

DOCUMENT_TOKENS = 8
"""The length of a document in the checks below."""
FLOAT32_TOLERANCE, ROUNDED_TOLERANCE = 1e-5, 5e-2
"""The largest relative difference (Euclidean) that counts as rounding, of layers that compute in float32 or in coarser
types.

Rounding changes float32 logits by about 5e-7, and bfloat16 logits of 24 layers by 1e-2. A document that sees another
changes them by 5e-2 to 1; a smaller effect is found in float32 only.
"""
SUGGESTED_MODELS = "llama, phi3 or qwen2"


def is_packed(position_ids: Tensor, attention_mask: Tensor | None = None) -> bool:
    """Returns whether positions [B, S] restart within a row; padding (0 in a mask [B, S]) does not count."""
    restarts = position_ids.diff(dim=-1) != 1
    if attention_mask is not None:
        real = attention_mask[:, -position_ids.shape[1] :].bool()
        restarts = restarts & real[:, 1:] & real[:, :-1]
    return bool(restarts.any())


def cache_for(
    position_ids: Tensor | None, attention_mask: Any, past_key_values: Any, use_cache: bool | None
) -> bool | None:
    """Returns `use_cache` for the language model: False for packed rows, unchanged for others.

    Raises:
        ValueError: packed rows with an attention mask or a cache; their documents would then see each other.
    """
    if position_ids is None or position_ids.shape[-1] == 1:
        return use_cache
    if attention_mask is None and past_key_values is None and use_cache is False:
        return use_cache  # right for any positions; reading them would make the host wait for the device
    plain = attention_mask is None or (isinstance(attention_mask, Tensor) and attention_mask.ndim == 2)
    if not plain and past_key_values is not None:
        return use_cache  # a mask that generation made for a static cache, padding included
    if not is_packed(position_ids, attention_mask if plain else None):
        return use_cache
    if attention_mask is not None or past_key_values is not None or use_cache:
        raise ValueError(
            "position_ids that restart within a row (packed documents) need attention_mask=None, past_key_values=None "
            "and use_cache=False, with a mask or a cache the documents of a row would see each other"
        )
    return False


def check_causal(model: Any) -> None:
    """Checks that earlier outputs are equal for two rows of a few tokens that differ only in the last token.

    It calls the root's forward, so that it works for sharded models too, and restores modes and random states.

    Raises:
        ConfigError: the language model sees later tokens.
    """
    rows = _random_tokens(model)[:1].repeat(2, 1)
    rows[1, -1] = (rows[1, -1] + 1) % (_vocabulary_size(model) - 1)
    with _evaluation_mode(model), _Rounding() as rounding:
        first, second = _logits(model, rows, _positions(rows))[:, :-1]
    if rounding.exceeded_by(first, second):
        raise ConfigError(
            f"language_model.model: {_model_type(model)} sees later tokens, so it would copy the answers that it is "
            f"to learn; take a causal model such as {SUGGESTED_MODELS}"
        )


def check_packing(model: Any, with_boundaries: bool = True) -> None:
    """Checks that the outputs of two documents of a few tokens are equal in one row and in separate rows.

    It changes nothing, as `check_causal`. It does not test rotary embeddings that depend on the longest document of a
    batch (longrope, dynamic), which do so for padded rows too.

    Args:
        model: the model, with the attention that it trains with.
        with_boundaries: whether batches have the boundaries of documents; without them attention finds documents by
            their positions.

    Raises:
        ConfigError: documents see each other in the language model.
    """
    documents = _random_tokens(model)
    positions = _positions(documents)
    row = documents.view(1, -1), positions.view(1, -1)
    boundaries = torch.arange(0, documents.numel() + 1, DOCUMENT_TOKENS, dtype=torch.int32, device=_device(model))
    with _evaluation_mode(model), _Rounding() as rounding:
        alone = _logits(model, documents, positions).flatten(0, 1)
        packed = _logits(model, *row, **document_inputs(boundaries if with_boundaries else None, DOCUMENT_TOKENS))[0]
        differs = rounding.exceeded_by(packed, alone)
        masked_differs = differs and rounding.exceeded_by(_logits(model, *row)[0], alone)
    if differs and not masked_differs:
        raise ConfigError(
            f"trainer.attention: without a dense mask documents in one row see each other in language model "
            f"{_model_type(model)}; write trainer.attention=sdpa"
        )
    if differs:
        raise ConfigError(
            f"data.packing: documents in one row see each other in language model {_model_type(model)}; write "
            f"data.packing=none, or take a model such as {SUGGESTED_MODELS}"
        )


@contextmanager
def _evaluation_mode(model: Any) -> Iterator[None]:
    """Sets eval mode without gradients and autocast; restores modes and random states at the end."""
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


def _vocabulary_size(model: Any) -> int:
    return model.config.get_text_config().vocab_size


def _random_tokens(model: Any) -> Tensor:
    """Returns two documents [2, DOCUMENT_TOKENS] of numbers below V - 1; `_logits` skips the image placeholder's id."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(_vocabulary_size(model) - 1, (2, DOCUMENT_TOKENS), generator=generator)


def _positions(documents: Tensor) -> Tensor:
    return torch.arange(documents.shape[1]).expand_as(documents).contiguous()


def _logits(model: Any, numbers: Tensor, positions: Tensor, **inputs: Any) -> Tensor:
    token_ids = numbers + (numbers >= model.config.image_token_id)
    device = _device(model)
    return model(token_ids.to(device), position_ids=positions.to(device), use_cache=False, **inputs).logits


class _Rounding(TorchDispatchMode):
    """Finds the coarsest type of a computation: quantised layers compute in bfloat16 and may return float32."""

    supports_higher_order_operators = True  # flex_attention is one, and is compiled under this mode, too

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """True: torch.compile works as without this mode, which sees the compiled operation as one."""
        return True

    def __init__(self) -> None:
        super().__init__()
        self._bits = 64

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation, and notes the types of its results."""
        results = function(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor) and result.is_floating_point():
                self._bits = min(self._bits, torch.finfo(result.dtype).bits)
        return results

    def exceeded_by(self, found: Tensor, wanted: Tensor) -> bool:
        """Returns whether two results of the computation differ by more than rounding."""
        exact = self._bits >= 32 and torch.get_float32_matmul_precision() == "highest"
        difference = (found - wanted).float().norm() / wanted.float().norm()
        return bool(difference > (FLOAT32_TOLERANCE if exact else ROUNDED_TOLERANCE))
