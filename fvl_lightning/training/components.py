"""The one place that knows which parameter belongs to which component, what of it learns, and that freezes."""

import logging
from collections.abc import Mapping
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from fvl_lightning.core.errors import ConfigError, unknown_name
from fvl_lightning.core.experiment import COMPONENTS

logger = logging.getLogger(__name__)

CHILDREN = {
    "encoder": "encoder",
    "alignment": "fusion",
    "fusion": "fusion",
    "output_norm": "fusion",
    "projector": "projector",
    "language_model": "language_model",
}
"""Direct children of the model and the component each one belongs to: the norms around a fusion train with it."""

MODES = ("frozen", "full", "lora")
"""How a component takes part in training; with lora its weights are frozen, and adapters beside them learn."""
ADAPTED = ("encoder", "language_model")
"""The components that may be lora."""


def component_of(name: str) -> str:
    """The component of a parameter, by its qualified name in the model."""
    return CHILDREN[name.split(".", 1)[0]]


def freeze(model: nn.Module, trainable: Mapping[str, str]) -> None:
    """Sets requires_grad by component, of which `trainable` has the mode; adapters, if there are any yet, learn."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(learns(name, trainable))


def learns(name: str, trainable: Mapping[str, str]) -> bool:
    """Whether a parameter is meant to learn, by its qualified name: one of LoRA's has a part that begins with lora_."""
    mode = trainable[component_of(name)]
    return mode == "full" or (mode == "lora" and any(part.startswith("lora_") for part in name.split(".")))


def children(trainable: Mapping[str, str], mode: str) -> list[str]:
    """The direct children of the model whose component has this mode."""
    return [child for child, component in CHILDREN.items() if trainable.get(component) == mode]


def learning(model: nn.Module, trainable: Mapping[str, str]) -> set[str]:
    """The names in the state of `model` that training changes: what wants a gradient, and buffers of what is full."""
    wanting = {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)} & model.state_dict().keys()
    return wanting | {name for name in buffers if trainable[component_of(name)] == "full"}


def set_modes(model: nn.Module, trainable: Mapping[str, str]) -> None:
    """What learns in train mode, all else in eval mode: no dropout in what does not learn, that of adapters aside."""
    for name, child in model.named_children():
        child.train(trainable[CHILDREN[name]] == "full")
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.train()
            module.get_base_layer().eval()


def blocks(model: nn.Module, component: str) -> list[nn.Module]:
    """The repeated blocks of a component; none where the model does not have it."""
    child: Any = dict(model.named_children()).get(component)
    return [] if child is None else child.blocks()


def resolve_trainable(defaults: Mapping[str, str], overrides: Mapping[str, str], stage: str) -> dict[str, str]:
    """What the stage says, overridden by the experiment; ConfigError for a component the stage does not have."""
    for name, mode in overrides.items():
        if name not in defaults:
            raise unknown_name("component", name, defaults, f"trainable of stage {stage}")
        if mode not in MODES:
            raise unknown_name("mode", mode, MODES, f"trainable.{name}")
        if mode == "lora" and name not in ADAPTED:
            raise ConfigError(f"trainable.{name}: lora is for {' and '.join(ADAPTED)}, take full or frozen")
    trainable = {**defaults, **overrides}
    if all(mode == "frozen" for mode in trainable.values()):
        raise ConfigError("trainable: every component is frozen, nothing would learn")
    return trainable


def count_parameters(model: nn.Module) -> dict[str, dict[str, int]]:
    """{component: {"parameters": n, "trainable": n}}, components without parameters at 0; tied ones counted once."""
    counts = {name: {"parameters": 0, "trainable": 0} for name in COMPONENTS}
    for name, parameter in model.named_parameters():
        entry = counts[component_of(name)]
        entry["parameters"] += parameter.numel()
        entry["trainable"] += parameter.numel() if parameter.requires_grad else 0
    return counts


def check_gradients(model: nn.Module, trainable: Mapping[str, str]) -> None:
    """Checks after the first backward pass with images that all trainable components learn, and no frozen one.

    Raises:
        ConfigError: a frozen component has gradients, or a trainable one has none.
    """
    touched = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    moved = {component_of(name) for name in touched}
    frozen = {component_of(name) for name in touched if not learns(name, trainable)}
    if frozen:
        raise ConfigError(f"trainable: {', '.join(sorted(frozen))} must not learn but received gradients")
    idle = [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    with_adapters = {component for component, mode in trainable.items() if mode == "lora"}
    whole = {*map(component_of, idle), *with_adapters} - moved
    if whole:
        raise ConfigError(f"trainable: {', '.join(sorted(whole))} must learn but received no gradient")
    if idle:
        logger.info("%d trainable parameters had no part in the first step, such as %s", len(idle), idle[0])
