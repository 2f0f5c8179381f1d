"""The families of vision transformers that `hf_vision` supports: their checks, shapes and names of submodules."""

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import AutoConfig, ImageProcessingMixin, PreTrainedConfig
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from fvl_lightning.core.errors import ConfigError, nearest, refuse_unknown_fields, unknown_name
from fvl_lightning.core.pretrained import open_saved
from fvl_lightning.core.types import FeatureSpec

LAST = "last"
"""The source that is the output of the tower."""
LAYER = re.compile(r"layer_([1-9]\d*)")
"""A source that is the output of a layer, counted from 1."""
TYPES_WITH_TEXT_TOWER = ("clip", "siglip")
"""Model types with a text tower; their configuration contains that of the vision tower."""


@dataclass(frozen=True)
class Family:
    """The properties of the towers of one model type."""

    layers: str
    """The qualified name of the list of layers."""
    norm: str
    """The name of the norm after the layers."""
    normalises_last: bool
    """Whether the norm applies to the tower's output; CLIP applies it only to the pooled CLS token."""
    any_size: bool
    """Whether the tower accepts other image sizes, by interpolated (DINOv2) or rotary (DINOv3) positions."""
    prefix: Callable[[Any], int]
    """Returns the number of tokens before the map (CLS and registers) for a configuration."""
    mean: tuple[float, ...]
    std: tuple[float, ...]


_CLIP = {"mean": tuple(OPENAI_CLIP_MEAN), "std": tuple(OPENAI_CLIP_STD)}
_SIGLIP = {"mean": tuple(IMAGENET_STANDARD_MEAN), "std": tuple(IMAGENET_STANDARD_STD)}
_DINO = {"mean": tuple(IMAGENET_DEFAULT_MEAN), "std": tuple(IMAGENET_DEFAULT_STD)}

FAMILIES = {
    "clip_vision_model": Family("encoder.layers", "post_layernorm", False, False, lambda config: 1, **_CLIP),
    "siglip_vision_model": Family("encoder.layers", "post_layernorm", True, False, lambda config: 0, **_SIGLIP),
    "dinov2": Family("encoder.layer", "layernorm", True, True, lambda config: 1, **_DINO),
    "dinov2_with_registers": Family(
        "encoder.layer", "layernorm", True, True, lambda config: 1 + config.num_register_tokens, **_DINO
    ),
    "dinov3_vit": Family("model.layer", "norm", True, True, lambda config: 1 + config.num_register_tokens, **_DINO),
}
"""{model type of transformers: family}. SigLIP 2 at a fixed resolution is a `siglip_vision_model`."""


def check_model(model: Mapping[str, Any]) -> None:
    """Raises ConfigError for a model type that is not supported, or a key that is no field of its configuration."""
    model_type = model.get("model_type")
    if model_type not in FAMILIES:
        raise unknown_name("vision tower", model_type, FAMILIES, "encoder.model.model_type")
    refuse_unknown_fields(model, CONFIG_MAPPING[model_type], "encoder.model")


def read_model(pretrained: str, revision: str | None) -> dict[str, Any]:
    """Returns the configuration of the vision tower of a hub id or folder; raises ConfigError if it cannot be read."""
    config = open_saved(AutoConfig, pretrained, "encoder", revision=revision)
    tower = config.vision_config if config.model_type in TYPES_WITH_TEXT_TOWER else config
    if tower.model_type not in FAMILIES:
        raise unknown_name("vision tower", tower.model_type, FAMILIES, f"encoder.pretrained: {pretrained}")
    # The dtype of the files does not determine the dtype of training.
    return {key: value for key, value in tower.to_dict().items() if key != "dtype"}


def read_normalisation(pretrained: str, revision: str | None, family: Family) -> tuple[list[float], list[float]]:
    """Returns mean and std per channel of the checkpoint's image processor; raises ConfigError without them."""
    try:
        fields, _ = ImageProcessingMixin.get_image_processor_dict(pretrained, revision=revision)
        return list(fields["image_mean"]), list(fields["image_std"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"encoder: no mean and std can be read for {pretrained} (preprocessor_config.json); write them as "
            f"encoder.mean and encoder.std, for this family usually {list(family.mean)} and {list(family.std)}"
        ) from None


def tower_config(model: Mapping[str, Any]) -> PreTrainedConfig:
    """Returns transformers' configuration of a tower without pooling head; raises ConfigError for wrong values."""
    fields = copy.deepcopy(dict(model))
    try:
        config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    except Exception as error:  # each configuration class raises errors of its own
        raise ConfigError(f"encoder.model: it cannot be built: {' '.join(str(error).split())}") from None
    if config.num_channels != 3:
        raise ConfigError(f"encoder.model.num_channels: images have 3 channels, found {config.num_channels}")
    heads, width = config.num_attention_heads, config.hidden_size
    if heads < 1 or width % heads:
        raise ConfigError(f"encoder.model.num_attention_heads: {heads} heads do not divide a width of {width}")
    if config.model_type == "dinov3_vit" and width // heads % 4:
        raise ConfigError(
            "encoder.model: for rotary positions hidden_size / num_attention_heads must be a multiple of 4, "
            f"found {width} / {heads}"
        )
    if config.model_type == "siglip_vision_model":
        config.vision_use_head = False  # the head pools the tokens, which are the sources
    return config


def check_sources(sources: list[str], layers: int) -> None:
    """Raises ConfigError for a source that a tower with `layers` layers does not have, or that is named twice."""
    known = [LAST, *(f"layer_{number}" for number in range(1, layers + 1))]
    if not sources:
        raise ConfigError(f"encoder.sources: it is empty, name at least one of last, layer_1 to layer_{layers}")
    for name in sources:
        if name not in known:
            close = nearest(name, known)
            hint = f"; did you mean '{close}'?" if close else ""
            raise ConfigError(f"encoder.sources: '{name}' is not one of last, layer_1 to layer_{layers}{hint}")
    if len(set(sources)) < len(sources):
        raise ConfigError(f"encoder.sources: a source is named twice in {', '.join(sources)}")


def check_size(image_size: int, config: PreTrainedConfig) -> None:
    """Raises ConfigError for an image size for which the tower has no positions."""
    own, patch = side_length(config, "image_size"), side_length(config, "patch_size")
    if not FAMILIES[config.model_type].any_size and image_size != own:
        raise ConfigError(f"encoder.image_size: {image_size} px, but this tower has positions for {own} px only")
    if image_size < patch:
        raise ConfigError(f"encoder.image_size: {image_size} px are less than one patch of {patch} px")


def side_length(config: PreTrainedConfig, name: str) -> int:
    """Returns the side of a square, which a configuration gives as one number or as two equal ones."""
    value = config.to_dict()[name]
    sides = set(value) if isinstance(value, list | tuple) else {value}
    if len(sides) != 1 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ConfigError(f"encoder.model.{name}: expected the side of a square in pixels, found {value!r}")
    return sides.pop()


def layer_number(source: str) -> int | None:
    """Returns k of `layer_<k>`; None for `last`."""
    match = LAYER.fullmatch(source)
    return int(match[1]) if match else None


def feature_specs(
    sources: list[str], image_size: int, config: PreTrainedConfig, keep_prefix: bool
) -> dict[str, FeatureSpec]:
    """Returns {source: its shape}; as in the towers, pixels after the last whole patch do not count."""
    side = image_size // side_length(config, "patch_size")
    prefix = FAMILIES[config.model_type].prefix(config) if keep_prefix else 0
    return {name: FeatureSpec(side * side + prefix, config.hidden_size, (side, side)) for name in sources}


def remove_unused(tower: nn.Module, family: Family, sources: list[str]) -> None:
    """Removes unused modules of `tower`: layers after the deepest source, the final norm and the mask token.

    Their parameters would get no gradient, but would still take memory in a sharded run.
    """
    name, _, leaf = family.layers.rpartition(".")
    layers: Any = tower.get_submodule(family.layers)
    if LAST not in sources:
        setattr(tower.get_submodule(name), leaf, layers[: max(layer_number(source) or 0 for source in sources)])
    if LAST not in sources or not family.normalises_last:
        setattr(tower, family.norm, nn.Identity())
    embeddings: Any = tower.get_submodule("embeddings")
    if "mask_token" in dict(embeddings.named_parameters(recurse=False)):
        mask = embeddings.mask_token.detach()
        del embeddings.mask_token
        # A buffer rather than None, since the towers' initialisation writes to it.
        embeddings.register_buffer("mask_token", mask, persistent=False)
