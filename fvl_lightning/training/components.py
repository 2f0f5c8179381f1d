"""The one place that knows which parameter belongs to which component, and that freezes."""

from collections.abc import Mapping

from torch import nn

from fvl_lightning.core.errors import ConfigError, unknown_name
from fvl_lightning.core.experiment import COMPONENTS

CHILDREN = {
    "encoder": "encoder",
    "alignment": "fusion",
    "fusion": "fusion",
    "output_norm": "fusion",
    "projector": "projector",
    "language_model": "language_model",
}
"""Direct children of the model and the component each one belongs to: the norms around a fusion train with it."""

MODES = ("frozen", "full")
"""How a component takes part in training."""


def component_of(name: str) -> str:
    """The component of a parameter, by its qualified name in the model."""
    return CHILDREN[name.split(".", 1)[0]]


def freeze(model: nn.Module, trainable: Mapping[str, str]) -> None:
    """Sets requires_grad by component; `trainable` maps every component the model has to frozen or full."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable[component_of(name)] == "full")


def set_modes(model: nn.Module, trainable: Mapping[str, str]) -> None:
    """Trained components in train mode, frozen ones in eval mode: no dropout in what does not learn."""
    for name, child in model.named_children():
        child.train(trainable[CHILDREN[name]] == "full")


def resolve_trainable(defaults: Mapping[str, str], overrides: Mapping[str, str], stage: str) -> dict[str, str]:
    """What the stage says, overridden by the experiment; ConfigError for a component the stage does not have."""
    for name, mode in overrides.items():
        if name not in defaults:
            raise unknown_name("component", name, defaults, f"trainable of stage {stage}")
        if mode not in MODES:
            raise unknown_name("mode", mode, MODES, f"trainable.{name}")
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
