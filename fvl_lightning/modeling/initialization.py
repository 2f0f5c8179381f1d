"""Initial values of each module from (seed, its name), so that modules that two models share start equal.

A single random stream would shift with the size of each module, so that two arms of a comparison would also differ in
their language models.
"""

import hashlib
from collections.abc import Collection

import torch
from torch import nn

from fvl_lightning.core.errors import ConfigError


def derived_seed(*parts: object) -> int:
    """Returns a 63-bit seed from any parts, the same on every machine (sha256)."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seed_streams(seed: int) -> None:
    """Seeds the random streams of the CPU and of CUDA devices in use, with the values of `torch.manual_seed`.

    `torch.manual_seed` also formats a traceback for CUDA devices that are not in use: milliseconds for every module.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@torch.no_grad()
def initialize(model: nn.Module, seed: int, filled: Collection[nn.Module] = ()) -> None:
    """Sets all parameters and computed buffers of `model`; the seed of a module is hash(seed, its qualified name).

    Args:
        filled: components whose parameters are set later; drawing them would take minutes, and memory.
    """
    owners = initializers(model)
    later = {module for part in filled for module in part.modules() if any(True for _ in module.parameters(False))}
    with torch.random.fork_rng(devices=[]):
        for name, module in model.named_modules():
            if module in later:
                continue
            seed_streams(derived_seed(seed, name))
            reset_module(module, owners.get(module))


def initializers(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """Returns {module: itself or its nearest ancestor with a method `_init_weights`}, leaving out `model` itself."""
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
    """Initialises one module by its owner's `_init_weights`, or by its own `reset_parameters()`.

    Raises:
        ConfigError: a module with parameters has neither.
    """
    if owner is not None:
        owner._init_weights(module)  # type: ignore[operator]
    elif hasattr(module, "reset_parameters"):
        module.reset_parameters()  # type: ignore[operator]
    else:
        own = [name for name, _ in module.named_parameters(recurse=False)]
        if own:
            raise ConfigError(
                f"{type(module).__name__} has parameters of its own ({', '.join(own)}) and no reset_parameters(), "
                "which must give them initial values"
            )
