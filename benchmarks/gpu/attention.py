"""Attention of packed rows: what each of torch's kernels costs, and whether it keeps documents apart.

The shapes are those of Phi-3.5: 32 heads of 96. Every case is forward and backward pass of one layer's attention.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu.runner import Findings, Settings
from benchmarks.gpu.timing import milliseconds

LENGTHS = (512, 2048, 4096, 8192)
TOKENS = 8192
"""Tokens of a batch, whatever the length of its rows."""
REPEATS = 10
PARITY_LENGTH = 512
"""Rows up to here are also compared with each document alone."""


@dataclass
class Rows:
    """Queries, keys and values [B, heads, S, width] of packed rows, all of which have the same documents."""

    query: Tensor
    key: Tensor
    value: Tensor
    ends: list[int]
    """0, then where each document of a row ends."""

    @classmethod
    def random(cls, length: int, settings: Settings) -> "Rows":
        """Returns rows of documents that are an eighth to a third of a row long."""
        generator = torch.Generator().manual_seed(length)
        ends = [0]
        while ends[-1] < length:
            size = int(torch.randint(length // 8, length // 3, (), generator=generator))
            ends.append(min(length, ends[-1] + size))
        heads, width = (2, 32) if settings.tiny else (32, 96)
        shape = (2 if settings.tiny else max(1, TOKENS // length), heads, length, width)
        dtype = torch.float32 if settings.tiny else torch.bfloat16
        inputs = (torch.randn(shape, device=settings.device, dtype=dtype, requires_grad=True) for _ in range(3))
        return cls(*inputs, ends)

    @property
    def mask(self) -> Tensor:
        """The mask [1, 1, S, S] with which a token sees the earlier ones of its document."""
        length = self.ends[-1]
        position = torch.arange(length)
        document = torch.bucketize(position, torch.tensor(self.ends[1:-1]), right=True)
        seen = (document[:, None] == document) & (position[:, None] >= position)
        return seen[None, None].to(self.query.device)

    def alone(self) -> Tensor:
        """Returns the attention of each document by itself, in float32."""
        parts = [
            scaled_dot_product_attention(
                *(inputs[:, :, begin:end].float() for inputs in (self.query, self.key, self.value)), is_causal=True
            )
            for begin, end in itertools.pairwise(self.ends)
        ]
        return torch.cat(parts, dim=2)

    def varlen(self) -> Tensor:
        """Returns the attention by document, without a mask."""
        from torch.nn.attention.varlen import varlen_attn

        batch, heads, length, width = self.query.shape
        ends = [0] + [row * length + end for row in range(batch) for end in self.ends[1:]]
        cumulative = torch.tensor(ends, dtype=torch.int32, device=self.query.device)
        longest = max(end - begin for begin, end in itertools.pairwise(self.ends))
        flat = [
            inputs.transpose(1, 2).reshape(batch * length, heads, width)
            for inputs in (self.query, self.key, self.value)
        ]
        found = varlen_attn(*flat, cumulative, cumulative, longest, longest, window_size=(-1, 0))
        return found.view(batch, length, heads, width).transpose(1, 2)


def cases(rows: Rows) -> Iterator[tuple[str, bool, Callable[[], Tensor]]]:
    """Yields (name, whether it keeps documents apart, computation)."""
    inputs = rows.query, rows.key, rows.value
    mask = rows.mask.expand(len(rows.query), 1, -1, -1)

    def causal() -> Tensor:
        return scaled_dot_product_attention(*inputs, is_causal=True)

    def masked() -> Tensor:
        return scaled_dot_product_attention(*inputs, attn_mask=mask)

    def by(backend: SDPBackend, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with sdpa_kernel(backend):
                return compute()

        return run

    yield "causal, torch's choice (rows that are not packed)", False, causal
    yield "mask, torch's choice (packed rows)", True, masked
    if rows.query.device.type == "cuda":
        yield "causal, cuDNN", False, by(SDPBackend.CUDNN_ATTENTION, causal)
        yield "mask, efficient", True, by(SDPBackend.EFFICIENT_ATTENTION, masked)
        yield "mask, cuDNN", True, by(SDPBackend.CUDNN_ATTENTION, masked)
        yield "varlen_attn", True, rows.varlen


def findings(settings: Settings) -> Findings:
    """Yields milliseconds per case and length, and for packed rows the difference from each document alone."""
    for length in (64,) if settings.tiny else LENGTHS:
        rows = Rows.random(length, settings)
        alone = rows.alone().detach() if length <= PARITY_LENGTH else None
        for name, apart, compute in cases(rows):
            case = {"case": name, "length": length, "rows": len(rows.query)}
            try:
                took = milliseconds(partial(_both_passes, compute, rows), REPEATS, settings.device)
                case |= {"milliseconds": took}
                if apart and alone is not None:
                    case |= {"difference": float((compute().detach().float() - alone).norm() / alone.norm())}
            except (RuntimeError, ImportError) as error:  # a kernel that this device or version lacks
                case |= {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
            yield case


def _both_passes(compute: Callable[[], Tensor], rows: Rows) -> None:
    found = compute()
    found.backward(torch.ones_like(found))
    for inputs in (rows.query, rows.key, rows.value):
        inputs.grad = None
