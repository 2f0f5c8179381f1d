"""The name of a set of weights."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def weights_hash(tensors: Mapping[str, Tensor]) -> str:
    """Twelve hex digits over names, dtypes, shapes and bytes; equal exactly where the weights are."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        if name.startswith("decoder."):
            continue
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {data.dtype} {tuple(data.shape)}".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
