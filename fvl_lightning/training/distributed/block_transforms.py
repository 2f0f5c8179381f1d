"""Transformer blocks wrapped: activation checkpointing and torch.compile."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(modules: Iterable[nn.Module]) -> None:
    """Has each module keep its input alone for the backward pass, and compute the rest again (arXiv 1604.06174).

    Its `forward` is replaced rather than the module wrapped, which would change the names of parameters.
    """
    for module in modules:
        module.forward = partial(checkpoint, module.forward, use_reentrant=False)


def compile_blocks(
    modules: Iterable[nn.Module], dynamic: bool | None = None, backend: str | Callable[..., Any] = "inductor"
) -> None:
    """Has each module compute through torch.compile, from its first step on.

    Its `forward` is replaced, as above, so that names stay and FSDP2's hooks run around what is compiled. Activations
    that are computed again are so inside of it, and the compiler knows.

    Args:
        dynamic: false compiles for every shape anew; None for sizes in general from the second one on.
    """
    for module in modules:
        module.forward = torch.compile(module.forward, dynamic=dynamic, backend=backend)
