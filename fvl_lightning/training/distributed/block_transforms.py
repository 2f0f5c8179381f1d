"""Activation checkpointing and torch.compile for transformer blocks."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.attention.varlen  # registers its operation
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from fvl_lightning.core.experiment import Kept, TrainerConfig

aten = torch.ops.aten
PRODUCTS = [
    aten.mm.default,
    aten.addmm.default,
    aten.convolution.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.torch_attn._varlen_attn.default,
]
"""Operations that take long beside the memory of their results. Products of batches of matrices are none: attention
without a fused kernel makes its weights with them, whose memory grows with the square of the row."""


def transform_blocks(blocks_of: Callable[[str], Iterable[nn.Module]], settings: TrainerConfig) -> None:
    """Checkpoints and then compiles the blocks that `settings` name, after sharding: FSDP2's hooks run around both.

    Args:
        blocks_of: returns the blocks of a component.
        settings: name the components.
    """
    for component in settings.checkpoint_activations:
        checkpoint_activations(blocks_of(component), settings.checkpoint_keep)
    for component in settings.compile:
        compile_blocks(blocks_of(component), any_length=component == "language_model")


def checkpoint_activations(modules: Iterable[nn.Module], keep: Kept = "inputs") -> None:
    """Makes each module save only its input, and recompute the rest in the backward pass (arXiv 1604.06174).

    This replaces its `forward`; a wrapper would change the names of parameters.

    Args:
        modules: the modules.
        keep: "products" saves the results of PRODUCTS too, so that they are not computed twice.
    """
    options: dict[str, Any] = {"use_reentrant": False}
    if keep == "products":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, PRODUCTS)
    for module in modules:
        module.forward = partial(checkpoint, module.forward, **options)


def compile_blocks(
    modules: Iterable[nn.Module], any_length: bool, backend: str | Callable[..., Any] = "inductor"
) -> None:
    """Compiles the forward pass of each module at its first call.

    Replacing its `forward` keeps the names of parameters, and FSDP2's hooks run outside the compiled code.
    A checkpointed module recomputes its activations inside the compiled code.

    Args:
        modules: the modules to compile.
        any_length: whether the code is for all sizes of its inputs; otherwise for any first size (images), and
            compiled anew for all others: the stages of a tower share code, but differ in the sizes of their maps.
        backend: the backend of torch.compile.
    """
    for module in modules:
        compiled = torch.compile(module.forward, dynamic=any_length, backend=backend)
        module.forward = compiled if any_length else partial(_for_any_first_size, compiled)


def _for_any_first_size(compiled: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.ndim > 1:
            torch._dynamo.maybe_mark_dynamic(value, 0)
    return compiled(*args, **kwargs)
