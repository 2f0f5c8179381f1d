"""Every module's initial values from (seed, its name), so that parts two models share start equal in both.

One random stream over a whole model would shift with the size of each part: two arms of a comparison would then differ
in their language models too.
"""

import hashlib

import torch
from torch import nn


def derived_seed(*parts: object) -> int:
    """A 63-bit seed from any parts, the same on every machine (sha256)."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@torch.no_grad()
def initialize(model: nn.Module, seed: int) -> None:
    """Sets every parameter and computed buffer of `model`, each module's from hash(seed, qualified name)."""
    owners = initializers(model)
    with torch.random.fork_rng(devices=[]):
        for name, module in model.named_modules():
            torch.manual_seed(derived_seed(seed, name))
            reset_module(module, owners.get(module))


def initializers(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """For each module the nearest one above or at it (`model` itself left out) that has a rule `_init_weights`."""
    owners: dict[nn.Module, nn.Module] = {}

    def walk(module: nn.Module, owner: nn.Module | None) -> None:
        if module is not model and hasattr(module, "_init_weights"):
            owner = module
        if owner is not None:
            owners[module] = owner
        for child in module.children():
            walk(child, owner)

    walk(model, None)
    return owners


def reset_module(module: nn.Module, owner: nn.Module | None) -> None:
    """Initialises one module: by its owner's rule, else by its own `reset_parameters()`; a container has neither."""
    if owner is not None:
        owner._init_weights(module)  # type: ignore[operator]
    elif hasattr(module, "reset_parameters"):
        module.reset_parameters()  # type: ignore[operator]
    else:
        own = [name for name, _ in module.named_parameters(recurse=False)]
        assert not own, f"{type(module).__name__} has parameters {own} of its own and no reset_parameters()"
