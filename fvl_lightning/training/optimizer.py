"""One optimiser for all trainable parameters.

Lightning's automatic optimisation takes one optimiser. The gradient of a parameter that is not in it would never be
zeroed, and would distort the clipping norm. Therefore one optimiser holds the groups of both AdamW and Muon.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fvl_lightning.core.errors import unknown_name
from fvl_lightning.core.experiment import COMPONENTS, OptimizerConfig
from fvl_lightning.training.components import component_of
from fvl_lightning.training.distributed.local_updates import LocalAdamW
from fvl_lightning.training.muon import MuonAdamW


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Returns AdamW, or AdamW with Muon, over the trainable parameters: a group per component and kind of update.

    Raises:
        ConfigError: `learning_rates` names an unknown component.
    """
    for name in config.learning_rates:
        if name not in COMPONENTS:
            raise unknown_name("component", name, COMPONENTS, "optimizer.learning_rates")
    hidden_matrices = _hidden_matrices(model) if config.name == "muon" else set()
    groups: dict[tuple[str, bool, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        component, muon, matrix = component_of(name), parameter in hidden_matrices, parameter.ndim > 1
        group = groups.setdefault(
            (component, muon, matrix),
            {
                "params": [],
                "name": f"{component}/{'muon' if muon else 'matrices' if matrix else 'vectors'}",
                "lr": config.learning_rates.get(component, config.learning_rate),
                "weight_decay": config.weight_decay if matrix else 0.0,
                "muon": muon,
            },
        )
        group["params"].append(parameter)
    optimizer = MuonAdamW if config.name == "muon" else LocalAdamW
    return optimizer(list(groups.values()), lr=config.learning_rate, betas=config.betas)


def _hidden_matrices(model: nn.Module) -> set[Tensor]:
    """Returns the weights of linear layers except token embeddings and output heads, whose rows stand for tokens."""
    tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    heads = {module.weight for name, module in model.named_modules() if name.endswith("lm_head")}
    linear = {module.weight for module in model.modules() if isinstance(module, nn.Linear)}
    return linear - tables - heads
