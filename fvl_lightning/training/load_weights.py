"""Loads weights into a model: components from a saved model, trainable parameters from a checkpoint."""

import logging
from collections.abc import Collection, Mapping, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.core.experiment import COMPONENTS
from fvl_lightning.core.weight_files import match_weights, read_weights
from fvl_lightning.modeling.adapters.folders import base_of, is_adapter_folder, is_model_folder, merge_adapter
from fvl_lightning.modeling.build import load_model
from fvl_lightning.training.checkpointing.sharded import ShardedTensor, whole
from fvl_lightning.training.components import COMPONENT_OF_CHILD, component_of

logger = logging.getLogger(__name__)

DECODER_PREFIX = "encoder.decoder."
"""Only encoder_pretrain uses the encoder's decoder; other stages do not load its weights."""


@torch.no_grad()
def load_components(model: nn.Module, folder: Path, only: Collection[str] = COMPONENTS) -> list[str]:
    """Copies the components that `model` shares with the weights in `folder`, and returns their names.

    Args:
        model: the model.
        folder: a model, an adapter or an encoder.
        only: the components that may be copied.

    Raises:
        DataError: the folder has no weights, or they are broken, quantised or not finite, or an adapter lacks its base.
        ConfigError: the parameters of a component differ; the message names the first differences.
    """
    stored = _read_stored(folder)
    state = model.state_dict()
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    shared = {component_of(name) for name in stored} & {component_of(name) for name in state}
    components = shared & set(only)
    wanted = {name for name in state if component_of(name) in components} - tied
    offered = {name for name in stored if component_of(name) in components and name not in tied}
    offered -= {name for name in offered - wanted if name.startswith(DECODER_PREFIX)}
    wrong = [f"{name} missing" for name in sorted(wanted - offered)]
    wrong += [f"{name} unknown" for name in sorted(offered - wanted)]
    wrong += [
        f"{name} {tuple(stored[name].shape)} for {tuple(state[name].shape)}"
        for name in sorted(wanted & offered)
        if state[name].shape != stored[name].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ConfigError(
            f"init_from: {folder} holds another model: {'; '.join(wrong[:3])}{more}; start from a run of the same "
            "components, or from one that has only what both share, such as an encoder_pretrain run"
        )
    values = match_weights(
        {name: (name, stored[name]) for name in wanted}, {name: state[name] for name in sorted(wanted)},
        f"init_from: {folder}",
    )  # fmt: skip
    lacking = {component_of(name) for name in state} - shared
    if lacking and is_model_folder(folder):
        logger.warning(
            "init_from: %s is a whole model without weights of %s, which keeps its initial weights",
            folder, ", ".join(sorted(lacking)),
        )  # fmt: skip
    for name, value in values.items():
        state[name].copy_(value)
    return sorted(components)


def check_checkpoint(checkpoint: Mapping[str, Any], frozen_hash: str, trained: Set[str], option: str) -> None:
    """Checks that a checkpoint belongs to this model.

    Args:
        checkpoint: its content.
        frozen_hash: the hash of the frozen weights of the model.
        trained: the names that training changes.
        option: the option or field that named the checkpoint, for the message.

    Raises:
        DataError: the frozen weights or the trainable parameters differ.
    """
    if checkpoint["frozen_hash"] != frozen_hash:
        raise DataError(
            f"{option}: the frozen weights are not those that the run had; what `init_from` or `pretrained` names "
            "has changed since, start a new run"
        )
    others = checkpoint["state_dict"].keys() ^ trained
    if others:
        raise DataError(f"{option}: the checkpoint's trainable parameters differ, e.g. {min(others)}")


@torch.no_grad()
def load_trainable(module: nn.Module, state: Mapping[str, Tensor | ShardedTensor]) -> None:
    """Copies the values of a checkpoint, whose names have been checked, tensor by tensor."""
    target = module.state_dict()
    for name, value in state.items():
        target[name].copy_(whole(value))


def _read_stored(folder: Path) -> dict[str, Tensor]:
    """Returns {parameter name: value} of a folder; an adapter is merged into its base."""
    if is_adapter_folder(folder):
        return merge_adapter(load_model(base_of(folder)).model, folder).state_dict()
    stored = read_weights(folder)
    foreign = [name for name in stored if name.split(".", 1)[0] not in COMPONENT_OF_CHILD]
    if foreign:
        raise DataError(f"{folder} holds parameters of another kind of model, such as {foreign[0]}")
    return stored
