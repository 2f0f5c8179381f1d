"""Attention functions for transformers' interface that need no mask to keep the documents of a row apart.

They get where documents begin and end under the names of transformers' flash attention (`cu_seq_lens_q`, ...). Without
these, as for rows that are not packed, padded prompts and caches, they are `sdpa` with its masks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.attention.varlen import varlen_attn
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from fvl_lightning.modeling.attention.documents import batches_of

PREFIX = "fvl_"
"""Begins the names of these functions in transformers' interface."""
BOUNDARIES, LONGEST = "cu_seq_lens_q", "max_length_q"
CHANGES_OF_SCORES = ("softcap", "s_aux", "position_bias")
"""Arguments of transformers' attention that these functions do not have."""


@dataclass(frozen=True)
class PackedAttention:
    """Inputs of attention beside queries, keys and values.

    Attributes:
        boundaries: [documents + 1] int32, ascending over the flattened rows: 0, where each further document begins, and
            B * S. All tokens belong to a document, padding too.
        longest: at least the tokens of the longest document.
        window: the number of tokens that a token sees, itself included; None for all before it.
        scale: the factor of the scores; None for 1 / sqrt(width).
        dropout: the probability with which an attention weight is set to zero.
    """

    boundaries: Tensor
    longest: int
    window: int | None
    scale: float | None
    dropout: float


def document_inputs(boundaries: Tensor | None, longest: int) -> dict[str, Any]:
    """Returns boundaries [documents + 1] as arguments of transformers' models; none where there are none."""
    if boundaries is None:
        return {}
    return {BOUNDARIES: boundaries, "cu_seq_lens_k": boundaries, LONGEST: longest, "max_length_k": longest}


def without_mask(inputs: Mapping[str, Any], implementation: str | None, device: torch.device) -> Tensor | None:
    """Returns the attention mask with which transformers makes none of its own: a mask of no elements.

    It gives a mask of four dimensions to the layers as it is. An attention that would apply this one ends in an error.

    Args:
        inputs: the arguments of the language model.
        implementation: the name of its attention; None is returned for those that need masks.
        device: the device of its inputs.
    """
    if BOUNDARIES not in inputs or not (implementation or "").startswith(PREFIX):
        return None
    return torch.empty(1, 1, 0, 0, dtype=torch.bool, device=device)


def documents_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, packed: PackedAttention
) -> Tensor:
    """Returns [B, S, heads, D] by `sdpa` over a few batches of documents of like length."""
    batches = batches_of(packed.boundaries)
    inputs = zip(*(batches.gathered(_flat(tensor)) for tensor in (query, key, value)), strict=True)
    found = []
    for each in inputs:
        heads_first = [tensor.transpose(1, 2) for tensor in each]
        mask = _window_mask(each[0].shape[1], packed.window, query.device)
        found.append(sdpa_attention_forward(module, *heads_first, mask, packed.dropout, packed.scale, True)[0])
    return batches.scattered(found).unflatten(0, (query.shape[0], query.shape[2]))


def varlen_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, packed: PackedAttention) -> Tensor:
    """Returns [B, S, heads, D] by torch's flash attention over documents, which computes in 16 bits."""
    if packed.dropout:
        raise ValueError("varlen has no dropout of attention weights")
    dtype = query.dtype if query.dtype.itemsize == 2 else torch.bfloat16
    queries, keys, values = (_flat(tensor).to(dtype) for tensor in (query, key, value))
    found = varlen_attn(
        queries,
        keys,
        values,
        packed.boundaries,
        packed.boundaries,
        packed.longest,
        packed.longest,
        scale=packed.scale,
        window_size=(-1 if packed.window is None else packed.window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(found, Tensor)
    return found.to(query.dtype).unflatten(0, (query.shape[0], query.shape[2]))


def flex_document_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, packed: PackedAttention
) -> Tensor:
    """Returns [B, S, heads, D] by torch's flex_attention with a mask of blocks; on a CPU without a backward pass."""
    if isinstance(query, FakeTensor):  # which flex_attention does not take; an estimate needs what is held and computed
        return documents_attention(module, query, key, value, packed)
    if packed.dropout:
        raise ValueError("flex_attention has no dropout of attention weights")
    shared = query.shape[1] // key.shape[1]
    if shared.bit_count() > 1:  # its kernels share heads of keys among 2, 4, 8, ... heads of queries
        key, value = repeat_kv(key, shared), repeat_kv(value, shared)
    attention: Any = _compiled_flex() if query.is_cuda else flex_attention
    mask = _block_mask(packed, query.shape[0], query.shape[2])
    grouped = query.shape[1] != key.shape[1]
    found = attention(query, key, value, block_mask=mask, scale=packed.scale, enable_gqa=grouped)
    assert isinstance(found, Tensor)
    return found.transpose(1, 2)


@lru_cache(maxsize=1)
def _compiled_flex() -> Callable[..., Any]:
    """Returns flex_attention as kernels; as it is, it computes all scores."""
    return torch.compile(flex_attention)


Kernel = Callable[[nn.Module, Tensor, Tensor, Tensor, PackedAttention], Tensor]
KERNELS: dict[str, Kernel] = {
    # Its batches are lists of other sizes with each row; a compiler would begin anew with each.
    "documents": torch.compiler.disable(documents_attention),
    "varlen": varlen_attention,
    "flex": flex_document_attention,
}


def attend(
    kernel: Kernel,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Computes causal attention in each document, or `sdpa` where the rows are not packed.

    Args:
        kernel: computes attention over documents.
        module: the attention layer.
        query: [B, heads, S, D].
        key: [B, key heads, S, D], each for as many heads of queries.
        value: as `key`.
        attention_mask: that of `without_mask`, or transformers' mask for `sdpa`.
        dropout, scaling, is_causal, kwargs: as in transformers' attention functions.

    Returns:
        [B, S, heads, D], and no weights.

    Raises:
        ValueError: the layer asks for something that the kernel does not have.
    """
    if attention_mask is None or attention_mask.shape[-1]:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs
        )
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    asked = [name for name in CHANGES_OF_SCORES if kwargs.get(name) is not None]
    if asked or not causal or kwargs.get(BOUNDARIES) is None:
        problem = asked[0] if asked else "no causal attention" if not causal else "no document boundaries"
        raise ValueError(f"{type(module).__name__} gives {problem} to an attention over packed documents")
    window = kwargs.get("sliding_window")
    packed = PackedAttention(kwargs[BOUNDARIES], kwargs[LONGEST], window, scaling, dropout)
    device = query.device.type
    if torch.is_autocast_enabled(device):  # as autocast does for `sdpa`; before copies are made
        dtype = torch.get_autocast_dtype(device)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    elif not query.dtype == key.dtype == value.dtype:
        raise ValueError(f"{type(module).__name__} gives queries, keys and values of several types")
    return kernel(module, query, key, value, packed), None


for _name, _kernel in KERNELS.items():
    AttentionInterface.register(PREFIX + _name, partial(attend, _kernel))
    AttentionMaskInterface.register(PREFIX + _name, sdpa_mask)


def _flat(tensor: Tensor) -> Tensor:
    """Returns [B * S, heads, D] of [B, heads, S, D]."""
    return tensor.transpose(1, 2).flatten(0, 1)


def _window_mask(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """Returns the mask [1, 1, length, length] of a window; None where a document fits into it."""
    if window is None or window >= length:
        return None
    position = torch.arange(length, device=device)
    back = position[:, None] - position
    return ((back >= 0) & (back < window))[None, None]


_block_masks: Any = WeakIdKeyDictionary()


def _block_mask(packed: PackedAttention, rows: int, length: int) -> BlockMask:
    """Returns the mask of blocks for rows of `length` tokens; made once for each tensor of boundaries and window."""
    made = _block_masks.setdefault(packed.boundaries, {})
    if packed.window not in made:
        device = packed.boundaries.device
        tokens = torch.arange(rows * length, device=device)
        document = torch.bucketize(tokens, packed.boundaries[1:], right=True).view(rows, length)
        window = packed.window or length

        def seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            back = query - key
            return (back >= 0) & (back < window) & (document[row, query] == document[row, key])

        made[packed.window] = create_block_mask(seen, rows, None, length, length, device=device.type)
    found: BlockMask = made[packed.window]
    return found
