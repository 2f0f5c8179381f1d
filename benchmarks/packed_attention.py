"""Attention over packed rows on a CPU: a dense mask, document by document, and the documents as rows of their own.

    python benchmarks/packed_attention.py [--repeats 7] [--tokens 4096]

Each case is the attention of one layer, forward and backward, in float32 on one thread, with 8 heads of 64 for queries
and 4 for keys. All cases of a length have the same documents: of 128 tokens, and of 16 to 240 tokens drawn at random.

    masked     `sdpa` with a dense mask, as transformers makes it of positions that restart
    documents  the kit's `documents`
    alone      `sdpa` over the same documents as rows of their own: one batch where all have 128 tokens, one row after
               the other where lengths differ

The cases of a length take turns, and of each the least time counts, since other processes only add to it. The table is
also saved, with the machine it was measured on, in benchmarks/results/packed_attention.json.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from recording import record
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from fvl_lightning.modeling.attention.kernels import PackedAttention, documents_attention

LENGTHS = (512, 1024, 2048, 4096)
HEADS, KEY_HEADS, WIDTH = 8, 4, 64
DOCUMENT = 128
SHORTEST, LONGEST = 16, 240


class Layer(nn.Module):
    """What transformers' attention functions read of a layer."""

    is_causal = True
    num_key_value_groups = HEADS // KEY_HEADS


LAYER = Layer()


def main() -> None:
    """Measures, prints the table and saves it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of a batch, whatever the length of its rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = [
        {"row": length, "document": "drawn" if drawn else str(DOCUMENT)}
        | measured(max(1, options.tokens // length), length, drawn, options.repeats)
        for length in LENGTHS
        for drawn in (False, True)
    ]
    record("packed_attention", {"tokens": options.tokens, "torch": torch.__version__, "cases": found})
    show(found)


def measured(rows: int, length: int, drawn: bool, repeats: int) -> dict[str, float]:
    """Returns milliseconds by case, and the largest relative difference (Euclidean) of outputs and gradients."""
    lengths = document_lengths(rows, length, drawn)
    inputs = [torch.randn(rows, length, heads, WIDTH).transpose(1, 2) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    cases = {
        "masked": masked(inputs, lengths),
        "documents": by_document(inputs, lengths),
        "alone": alone(inputs, lengths),
    }
    results = {name: case() for name, case in cases.items()}
    pairs = zip(results["masked"], results["documents"], strict=True)
    difference = max(float((one - other).norm() / one.norm()) for one, other in pairs)
    took = {name: float("inf") for name in cases}
    for _ in range(repeats):
        for name, case in cases.items():
            began = time.perf_counter()
            case()
            took[name] = min(took[name], 1000 * (time.perf_counter() - began))
    return took | {"difference": difference}


def document_lengths(rows: int, length: int, drawn: bool) -> list[int]:
    """Returns the lengths of the documents that fill rows, row by row."""
    generator = torch.Generator().manual_seed(length)
    found = []
    for _ in range(rows):
        left = length
        while left:
            asked = int(torch.randint(SHORTEST, LONGEST, (), generator=generator)) if drawn else DOCUMENT
            found.append(min(left, asked))
            left -= found[-1]
    return found


def both_passes(compute: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Returns the output and the gradients of the inputs."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    output = compute(*leaves)
    return [output.detach(), *torch.autograd.grad(output.square().sum(), leaves)]


def masked(inputs: list[Tensor], lengths: list[int]) -> Callable[[], list[Tensor]]:
    """Returns the case with a dense mask, which is made before."""
    rows, length = inputs[0].shape[0], inputs[0].shape[2]
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).view(rows, 1, length)
    mask = (document[..., None] == document[:, :, None]) & torch.ones(length, length, dtype=torch.bool).tril()
    return partial(both_passes, partial(attention, mask=mask), inputs)


def by_document(inputs: list[Tensor], lengths: list[int]) -> Callable[[], list[Tensor]]:
    """Returns the case of the kit."""
    boundaries = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    packed = PackedAttention(boundaries, max(lengths), window=None, scale=None, dropout=0.0)

    def compute(*tensors: Any) -> Tensor:
        return documents_attention(LAYER, *tensors, packed)

    return partial(both_passes, compute, inputs)


def alone(inputs: list[Tensor], lengths: list[int]) -> Callable[[], Any]:
    """Returns the case with documents as rows of their own."""
    if len(set(lengths)) == 1:
        shape = (len(lengths), lengths[0], -1, WIDTH)
        rows = [tensor.transpose(1, 2).reshape(shape).transpose(1, 2) for tensor in inputs]
        return partial(both_passes, attention, rows)
    flat = [tensor.transpose(1, 2).flatten(0, 1).split(lengths) for tensor in inputs]
    documents = [[part[None].transpose(1, 2) for part in parts] for parts in zip(*flat, strict=True)]

    def compute() -> None:
        for document in documents:
            both_passes(attention, document)

    return compute


def attention(*inputs: Tensor, mask: Tensor | None = None) -> Tensor:
    """Returns transformers' `sdpa`."""
    output: Tensor = sdpa_attention_forward(LAYER, *inputs, attention_mask=mask)[0]
    return output


def show(found: list[dict[str, Any]]) -> None:
    """Prints milliseconds by row and documents, and what packed rows take beside the documents alone."""
    table = Table("tokens of a row", "of a document", "masked", "documents", "alone", "documents / alone", "difference")
    for case in found:
        times = [f"{case[name]:.1f} ms" for name in ("masked", "documents", "alone")]
        ratio = f"{case['documents'] / case['alone']:.2f}"
        table.add_row(str(case["row"]), case["document"], *times, ratio, f"{case['difference']:.0e}")
    Console().print(table)


if __name__ == "__main__":
    main()
