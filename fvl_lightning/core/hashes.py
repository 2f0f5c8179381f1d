"""The name of a set of weights."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def weights_hash(tensors: Mapping[str, Tensor]) -> str:
    """Returns twelve hex digits over names, shapes and values; equal exactly where the weights are.

    Values are compared, not the type that holds them: a float32 copy of bfloat16 weights has their hash.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        data = _as_float32(tensor.detach().cpu().contiguous())
        digest.update(f"{name} {data.dtype} {tuple(data.shape)}".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def _as_float32(values: Tensor) -> Tensor:
    """Returns the same values as float32, and what float32 cannot hold as it is."""
    if not values.is_floating_point():
        return values
    held = values.float()
    # Whatever is shorter than float32 fits into it.
    return values if values.dtype == torch.float64 and not torch.equal(held.double(), values) else held
