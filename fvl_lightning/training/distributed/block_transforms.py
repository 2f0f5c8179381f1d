"""Activation checkpointing and torch.compile for transformer blocks."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(modules: Iterable[nn.Module]) -> None:
    """Makes each module save only its input, and recompute the rest in the backward pass (arXiv 1604.06174).

    This replaces its `forward`; a wrapper would change the names of parameters.
    """
    for module in modules:
        module.forward = partial(checkpoint, module.forward, use_reentrant=False)


def compile_blocks(
    modules: Iterable[nn.Module], dynamic: bool | None = None, backend: str | Callable[..., Any] = "inductor"
) -> None:
    """Compiles the forward pass of each module at its first call.

    Replacing its `forward` keeps the names of parameters, and FSDP2's hooks run outside the compiled code.
    A checkpointed module recomputes its activations inside the compiled code.

    Args:
        modules: the modules to compile.
        dynamic: False compiles for every shape anew; None compiles for general sizes from the second shape on.
        backend: the backend of torch.compile.
    """
    for module in modules:
        module.forward = torch.compile(module.forward, dynamic=dynamic, backend=backend)
