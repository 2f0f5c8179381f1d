"""Documents of like length side by side: packed rows become a few batches of whole documents, and back.

A batch of documents is padded on the right. Under a causal mask no token sees the later ones, so that padding needs no
mask; what is computed at its places is dropped.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

LEAST_SHARE = 0.75
"""A document that is shorter than this share of the longest in a batch begins another batch."""
SHORT = 32
"""Documents of at most so many tokens share a batch, since a call costs more than their padding."""


@dataclass(frozen=True)
class Batches:
    """Batches of documents with `shapes` (documents, tokens of the longest), M places in all, for T tokens of rows.

    Attributes:
        shapes: the batches, longest documents first.
        sources: [M] int64, the token at each place; any token at those of padding. None if the rows, cut at equal
            distances, are the one batch.
        places: [T] int64, the place of each token.
        padding: the places [M - T] of padding.
        tokens: T.
    """

    shapes: tuple[tuple[int, int], ...]
    sources: Tensor | None
    places: Tensor | None
    padding: Tensor | None
    tokens: int

    def gathered(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Returns, for each batch, [documents, longest, ...] of tokens [T, ...]; ValueError for another number."""
        if len(tokens) != self.tokens:
            raise ValueError(f"the documents have {self.tokens} tokens, and the rows {len(tokens)}")
        laid: Any = tokens
        if self.sources is not None:
            laid = _Gather.apply(tokens, self.sources, self.places)
        parts = laid.split([count * longest for count, longest in self.shapes])
        return tuple(part.unflatten(0, shape) for part, shape in zip(parts, self.shapes, strict=True))

    def scattered(self, batches: list[Tensor]) -> Tensor:
        """Returns tokens [T, ...] of batches [documents, longest, ...]."""
        flat = [batch.flatten(0, 1) for batch in batches]
        laid = flat[0] if len(flat) == 1 else torch.cat(flat)
        if self.sources is None:
            return laid
        tokens: Tensor = _Scatter.apply(laid, self.sources, self.places, self.padding)
        return tokens


def batches_of(boundaries: Tensor) -> Batches:
    """Returns the batches for boundaries [documents + 1]; worked out once for each tensor.

    The layers of a pass, and recomputations for its backward pass, have the same tensor. The host waits for a GPU here.
    """
    found: Batches | None = _known.get(boundaries)
    if found is None:
        found = _known[boundaries] = plan_batches(np.asarray(boundaries.tolist(), dtype=np.int64), boundaries.device)
    return found


_known: Any = WeakIdKeyDictionary()


def plan_batches(ends: NDArray[np.int64], device: torch.device | str = "cpu") -> Batches:
    """Divides documents among batches, so that each has documents of like length.

    Args:
        ends: [documents + 1], where each document begins, and the end of the last.
        device: the device of the indices.
    """
    starts, lengths = ends[:-1], np.diff(ends)
    starts, lengths = starts[lengths > 0], lengths[lengths > 0]
    if (lengths == lengths[0]).all():
        return Batches(((len(lengths), int(lengths[0])),), None, None, None, int(lengths.sum()))
    order = np.argsort(-lengths, kind="stable")
    starts, lengths = starts[order], lengths[order]
    shapes, sources, real = [], [], []
    first = 0
    while first < len(lengths):
        longest = int(lengths[first])
        least = 0 if longest <= SHORT else LEAST_SHARE * longest
        last = int(np.searchsorted(-lengths, -least, side="right"))
        offsets = np.arange(longest)
        is_real = offsets < lengths[first:last, None]
        sources.append(np.where(is_real, starts[first:last, None] + offsets, 0).ravel())
        real.append(is_real.ravel())
        shapes.append((last - first, longest))
        first = last
    every, is_real = np.concatenate(sources), np.concatenate(real)
    places = np.empty(lengths.sum(), dtype=np.int64)
    places[every[is_real]] = np.flatnonzero(is_real)
    indices = [torch.from_numpy(each).to(device) for each in (every, places, np.flatnonzero(~is_real))]
    return Batches(tuple(shapes), indices[0], indices[1], indices[2], len(places))


class _Gather(torch.autograd.Function):
    """Tokens [T, ...] to places [M, ...]; the gradient of each token is that of its one place.

    torch's own gradient of an index would add up all places, one after the other on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, sources: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return tokens.index_select(0, sources)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return gradients[0].index_select(0, places), None, None


class _Scatter(torch.autograd.Function):
    """Places [M, ...] back to tokens [T, ...]; padding gets a gradient of zeros."""

    @staticmethod
    def forward(ctx: Any, laid: Tensor, sources: Tensor, places: Tensor, padding: Tensor) -> Tensor:
        ctx.save_for_backward(sources, padding)
        return laid.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        sources, padding = ctx.saved_tensors
        return gradients[0].index_select(0, sources).index_fill_(0, padding, 0), None, None, None
