"""Weights by component, out of the saved model of one run into the model of another; and those of a checkpoint."""

import logging
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.core.weight_files import match_weights, read_weights, weights_hash
from fvl_lightning.modeling.adapters.folders import base_of, is_adapter_folder, is_model_folder, merge_adapter
from fvl_lightning.modeling.build import load_model
from fvl_lightning.training.checkpointing.sharded import ShardedTensor, whole
from fvl_lightning.training.components import CHILDREN, component_of

logger = logging.getLogger(__name__)

__all__ = ["check_checkpoint", "load_components", "load_trainable", "weights_hash"]

UNUSED = "encoder.decoder."
"""Only encoder_pretrain has the encoder's decoder; a language stage leaves its weights in the file."""


@torch.no_grad()
def load_components(model: nn.Module, folder: Path) -> list[str]:
    """Copies every component that the weights in `folder` and `model` both have; returns their names.

    Raises:
        DataError: no weights there, or broken ones, quantised numbers or NaN, or an adapter without its base.
        ConfigError: a component whose parameters differ; the sentence names the first differences.
    """
    stored = _stored(folder)
    ours = model.state_dict()
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    components = {component_of(name) for name in stored} & {component_of(name) for name in ours}
    wanted = {name for name in ours if component_of(name) in components} - tied
    offered = {name for name in stored if component_of(name) in components and name not in tied}
    offered -= {name for name in offered - wanted if name.startswith(UNUSED)}
    wrong = [f"{name} missing" for name in sorted(wanted - offered)]
    wrong += [f"{name} unknown" for name in sorted(offered - wanted)]
    wrong += [
        f"{name} {tuple(stored[name].shape)} for {tuple(ours[name].shape)}"
        for name in sorted(wanted & offered)
        if ours[name].shape != stored[name].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ConfigError(
            f"init_from: {folder} holds another model: {'; '.join(wrong[:3])}{more}; start from a run of the same "
            "components, or from one that has only what both share, such as an encoder_pretrain run"
        )
    values = match_weights(
        {name: (name, stored[name]) for name in wanted}, {name: ours[name] for name in sorted(wanted)},
        f"init_from: {folder}",
    )  # fmt: skip
    lacking = {component_of(name) for name in ours} - components
    if lacking and is_model_folder(folder):
        logger.warning(
            "init_from: %s is a whole model without weights of %s, which begins as it is here",
            folder, ", ".join(sorted(lacking)),
        )  # fmt: skip
    for name, value in values.items():
        ours[name].copy_(value)
    return sorted(components)


def check_checkpoint(checkpoint: Mapping[str, Any], frozen_hash: str, learning: Set[str], told: str) -> None:
    """DataError, of the option `told`, where the checkpoint is of other frozen weights, or other things learnt."""
    if checkpoint["frozen_hash"] != frozen_hash:
        raise DataError(
            f"{told}: the frozen weights are not those that the run had; what `init_from` or `pretrained` names "
            "has changed since, start a new run"
        )
    others = checkpoint["state_dict"].keys() ^ learning
    if others:
        raise DataError(f"{told}: the checkpoint does not hold what learns here, see {min(others)}")


@torch.no_grad()
def load_trainable(module: nn.Module, state: Mapping[str, Tensor | ShardedTensor]) -> None:
    """Copies a checkpoint's values, whose names have been checked, tensor by tensor."""
    ours = module.state_dict()
    for name, value in state.items():
        ours[name].copy_(whole(value))


def _stored(folder: Path) -> dict[str, Tensor]:
    """{parameter name: value} of a folder; an adapter's are merged into those of its base."""
    if is_adapter_folder(folder):
        return merge_adapter(load_model(base_of(folder)).model, folder).state_dict()
    stored = read_weights(folder)
    foreign = [name for name in stored if name.split(".", 1)[0] not in CHILDREN]
    if foreign:
        raise DataError(f"{folder} holds parameters of another kind of model, such as {foreign[0]}")
    return stored
