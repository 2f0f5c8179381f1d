"""The components of a model: which parameters belong to each, and which of them are trainable."""

import logging
from collections.abc import Mapping
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from fvl_lightning.core.errors import ConfigError, unknown_name
from fvl_lightning.core.experiment import COMPONENTS, REPEATED

logger = logging.getLogger(__name__)

COMPONENT_OF_CHILD = {
    "encoder": "encoder",
    "alignment": "fusion",
    "fusion": "fusion",
    "output_norm": "fusion",
    "projector": "projector",
    "inner_layers": "projector",
    "language_model": "language_model",
}
"""{direct child of the model: its component}; the norms around a fusion belong to it.

What brings features into inner layers of the language model belongs to the projector.
"""

MODES = ("frozen", "full", "lora")
"""The training modes of a component; with lora its weights are frozen and its adapters are trained."""
LORA_COMPONENTS = ("encoder", "language_model")
"""The components that LoRA supports."""


def component_of(name: str) -> str:
    """Returns the component of a parameter, given its qualified name in the model."""
    return COMPONENT_OF_CHILD[name.split(".", 1)[0]]


def freeze(model: nn.Module, trainable: Mapping[str, str]) -> None:
    """Sets requires_grad of every parameter; `trainable` is {component: mode}."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trainable(name, trainable))


def is_trainable(name: str, trainable: Mapping[str, str]) -> bool:
    """Returns whether a parameter is trained, given its qualified name; parameters of LoRA have a part "lora_..."."""
    mode = trainable[component_of(name)]
    return mode == "full" or (mode == "lora" and any(part.startswith("lora_") for part in name.split(".")))


def children_with_mode(trainable: Mapping[str, str], mode: str) -> list[str]:
    """Returns the direct children of the model whose component has this mode."""
    return [child for child, component in COMPONENT_OF_CHILD.items() if trainable.get(component) == mode]


def trainable_names(model: nn.Module, trainable: Mapping[str, str]) -> set[str]:
    """Returns the names in the state dict that training changes.

    They are the parameters that require a gradient, and the buffers of components in mode full.
    """
    parameters = {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)} & model.state_dict().keys()
    return parameters | {name for name in buffers if trainable[component_of(name)] == "full"}


def set_modes(model: nn.Module, trainable: Mapping[str, str]) -> None:
    """Sets components in mode full, and adapters, to train mode and everything else to eval mode, without dropout."""
    for name, child in model.named_children():
        child.train(trainable[COMPONENT_OF_CHILD[name]] == "full")
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.train()
            module.get_base_layer().eval()


def blocks(model: nn.Module, component: str) -> list[nn.Module]:
    """Returns the repeated blocks of a component; an empty list if the model does not have it."""
    child: Any = dict(model.named_children()).get(component)
    return [] if child is None else child.blocks()


def sharding_units(model: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """Returns the blocks of all components, and the token table if it stands alone: each is gathered by itself."""
    language_model: Any = dict(model.named_children()).get("language_model")
    table = None if language_model is None else language_model.token_table()
    return [block for name in REPEATED for block in blocks(model, name)], [] if table is None else [table]


def resolve_trainable(defaults: Mapping[str, str], overrides: Mapping[str, str], stage: str) -> dict[str, str]:
    """Returns {component: mode}, the stage's defaults with the experiment's overrides.

    Raises:
        ConfigError: a component that the stage does not have, an unknown mode, LoRA where it is not supported, or
            nothing to train.
    """
    for name, mode in overrides.items():
        if name not in defaults:
            raise unknown_name("component", name, defaults, f"trainable of stage {stage}")
        if mode not in MODES:
            raise unknown_name("mode", mode, MODES, f"trainable.{name}")
        if mode == "lora" and name not in LORA_COMPONENTS:
            raise ConfigError(f"trainable.{name}: lora is for {' and '.join(LORA_COMPONENTS)}, take full or frozen")
    trainable = {**defaults, **overrides}
    if all(mode == "frozen" for mode in trainable.values()):
        raise ConfigError("trainable: every component is frozen, nothing would learn")
    return trainable


def count_parameters(model: nn.Module) -> dict[str, dict[str, int]]:
    """Returns {component: {"parameters": n, "trainable": n}} for all components; tied parameters count once."""
    counts = {name: {"parameters": 0, "trainable": 0} for name in COMPONENTS}
    for name, parameter in model.named_parameters():
        entry = counts[component_of(name)]
        entry["parameters"] += parameter.numel()
        entry["trainable"] += parameter.numel() if parameter.requires_grad else 0
    return counts


def check_gradients(model: nn.Module, trainable: Mapping[str, str]) -> None:
    """Checks, after a backward pass with images, that trainable components have gradients and frozen ones have none.

    Raises:
        ConfigError: a frozen component has gradients, or a trainable one has none.
    """
    with_gradient = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    reached = {component_of(name) for name in with_gradient}
    frozen = {component_of(name) for name in with_gradient if not is_trainable(name, trainable)}
    if frozen:
        raise ConfigError(f"trainable: {', '.join(sorted(frozen))} must not learn but received gradients")
    idle = [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    with_adapters = {component for component, mode in trainable.items() if mode == "lora"}
    missed = {*map(component_of, idle), *with_adapters} - reached
    if missed:
        raise ConfigError(f"trainable: {', '.join(sorted(missed))} must learn but received no gradient")
    if idle:
        logger.info("%d trainable parameters had no gradient in the first step, such as %s", len(idle), idle[0])
