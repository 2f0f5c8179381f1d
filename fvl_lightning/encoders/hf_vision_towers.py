"""The families of vision transformers that `hf_vision` takes from transformers, and where each keeps what it needs."""

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

from fvl_lightning.core.errors import ConfigError, first_line, nearest, refuse_unknown_fields, unknown_name
from fvl_lightning.core.types import FeatureSpec

LAST = "last"
"""The tower's own output."""
LAYER = re.compile(r"layer_([1-9]\d*)")
"""The output of a layer, counted from 1."""
WITH_TEXT = ("clip", "siglip")
"""Model types of checkpoints that hold a text tower too; their vision tower is a configuration inside theirs."""


@dataclass(frozen=True)
class Family:
    """What the towers of one model type have in common."""

    layers: str
    """Dotted name of the list of layers in the tower."""
    norm: str
    """Name of the norm behind the layers."""
    normalises_last: bool
    """Whether the tower's output has gone through that norm; CLIP has it for the pooled CLS token alone."""
    any_size: bool
    """Whether positions reach beyond the size trained at: interpolated (DINOv2) or rotary (DINOv3)."""
    prefix: Callable[[Any], int]
    """From the tower's configuration to the tokens before the map: CLS, then registers."""
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
"""By transformers' model type. SigLIP 2 at a fixed resolution is `siglip_vision_model`, as its checkpoints say."""


def check_model(model: Mapping[str, Any]) -> None:
    """ConfigError for a model type that is no tower of these families, or a key that its configuration lacks."""
    model_type = model.get("model_type")
    if model_type not in FAMILIES:
        raise unknown_name("vision tower", model_type, FAMILIES, "encoder.model.model_type")
    refuse_unknown_fields(model, CONFIG_MAPPING[model_type], "encoder.model")


def read_model(pretrained: str, revision: str | None) -> dict[str, Any]:
    """The vision tower's part of the configuration of a hub id or folder."""
    try:
        config = AutoConfig.from_pretrained(pretrained, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"encoder: {pretrained} could not be read: {first_line(error)}") from None
    tower = config.vision_config if config.model_type in WITH_TEXT else config
    if tower.model_type not in FAMILIES:
        raise unknown_name("vision tower", tower.model_type, FAMILIES, f"encoder.pretrained: {pretrained}")
    # The precision it was stored in says nothing of the one it is to run in.
    return {key: value for key, value in tower.to_dict().items() if key != "dtype"}


def read_normalisation(pretrained: str, revision: str | None, family: Family) -> tuple[list[float], list[float]]:
    """Mean and std per channel out of the configuration of the checkpoint's image processor."""
    try:
        fields, _ = ImageProcessingMixin.get_image_processor_dict(pretrained, revision=revision)
        return list(fields["image_mean"]), list(fields["image_std"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"encoder: no mean and std can be read for {pretrained} (preprocessor_config.json); write them as "
            f"encoder.mean and encoder.std, for this family usually {list(family.mean)} and {list(family.std)}"
        ) from None


def tower_config(model: Mapping[str, Any]) -> PreTrainedConfig:
    """transformers' configuration of a tower without pooling head; ConfigError for values it refuses."""
    fields = copy.deepcopy(dict(model))
    try:
        config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    except Exception as error:  # each configuration class refuses values in its own way
        raise ConfigError(f"encoder.model: it cannot be built: {' '.join(str(error).split())}") from None
    if config.num_channels != 3:
        raise ConfigError(f"encoder.model.num_channels: images have 3 channels, found {config.num_channels}")
    if config.model_type == "dinov3_vit" and config.hidden_size / config.num_attention_heads % 4:
        raise ConfigError(
            f"encoder.model: rotary positions take heads of 4, 8, 12, ... channels, found hidden_size "
            f"{config.hidden_size} over num_attention_heads {config.num_attention_heads}"
        )
    heads, width = config.num_attention_heads, config.hidden_size
    if heads < 1 or width % heads:
        raise ConfigError(f"encoder.model.num_attention_heads: {heads} heads do not divide a width of {width}")
    if config.model_type == "siglip_vision_model":
        config.vision_use_head = False  # it pools what the sources are
    return config


def check_sources(sources: list[str], layers: int) -> None:
    """ConfigError for a source that the tower of so many layers does not have, or that is named twice."""
    known = [LAST, *(f"layer_{number}" for number in range(1, layers + 1))]
    if not sources:
        raise ConfigError(f"encoder.sources: there is none, name at least one of last, layer_1 to layer_{layers}")
    for name in sources:
        if name not in known:
            close = nearest(name, known)
            hint = f"; did you mean '{close}'?" if close else ""
            raise ConfigError(f"encoder.sources: '{name}' is not one of last, layer_1 to layer_{layers}{hint}")
    if len(set(sources)) < len(sources):
        raise ConfigError(f"encoder.sources: a source is named twice in {', '.join(sources)}")


def check_size(image_size: int, config: PreTrainedConfig) -> None:
    """ConfigError for an image size that the tower has no positions for."""
    own, patch = square(config, "image_size"), square(config, "patch_size")
    if not FAMILIES[config.model_type].any_size and image_size != own:
        raise ConfigError(f"encoder.image_size: {image_size} px, but this tower has positions for {own} px only")
    if image_size < patch:
        raise ConfigError(f"encoder.image_size: {image_size} px are less than one patch of {patch} px")


def square(config: PreTrainedConfig, name: str) -> int:
    """The side of a square that a configuration writes as one number or as two equal ones."""
    value = config.to_dict()[name]
    sides = set(value) if isinstance(value, list | tuple) else {value}
    if len(sides) != 1 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ConfigError(f"encoder.model.{name}: expected the side of a square in pixels, found {value!r}")
    return sides.pop()


def layer_number(source: str) -> int | None:
    """k of `layer_<k>`; None for `last`."""
    match = LAYER.fullmatch(source)
    return int(match[1]) if match else None


def feature_specs(
    sources: list[str], image_size: int, config: PreTrainedConfig, keep_prefix: bool
) -> dict[str, FeatureSpec]:
    """Shape of every source; pixels behind the last whole patch are cut off, as the towers do."""
    side = image_size // square(config, "patch_size")
    prefix = FAMILIES[config.model_type].prefix(config) if keep_prefix else 0
    return {name: FeatureSpec(side * side + prefix, config.hidden_size, (side, side)) for name in sources}


def keep_only_what_is_read(tower: nn.Module, family: Family, sources: list[str]) -> None:
    """Takes out of `tower` what none of the sources reads: layers behind the deepest, the last norm, the mask token.

    A parameter without a part in the output would get no gradient, and a sharded run would still carry it.
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
        # Not None: the towers' initialisation writes to it.
        embeddings.register_buffer("mask_token", mask, persistent=False)
