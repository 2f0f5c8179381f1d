"""The configurations of vision towers of transformers: reading, and checks before a tower is built."""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

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
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from fvl_lightning.core.errors import ConfigError, nearest, refuse_unknown_fields
from fvl_lightning.core.pretrained import open_saved

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation per channel."""
IMAGENET: Normalisation = (tuple(IMAGENET_DEFAULT_MEAN), tuple(IMAGENET_DEFAULT_STD))
CUSTOMARY: dict[str, Normalisation] = {
    "clip_vision_model": (tuple(OPENAI_CLIP_MEAN), tuple(OPENAI_CLIP_STD)),
    "siglip_vision_model": (tuple(IMAGENET_STANDARD_MEAN), tuple(IMAGENET_STANDARD_STD)),
}
"""The normalisation from scratch where it is not ImageNet's, by model type."""


def check_model(model: Mapping[str, Any]) -> None:
    """Raises ConfigError for a model type that is no vision tower, or a key that is no field of its configuration."""
    model_type = model.get("model_type")
    if model_type not in CONFIG_MAPPING:
        close = nearest(str(model_type), CONFIG_MAPPING) if model_type else None
        hint = f"; did you mean '{close}'?" if close else ""
        raise ConfigError(
            f"encoder.model.model_type: '{model_type}' is no model of transformers, such as dinov2 or convnextv2{hint}"
        )
    check_tower(CONFIG_MAPPING[model_type], "encoder.model.model_type")
    refuse_unknown_fields(model, CONFIG_MAPPING[model_type], "encoder.model")


def check_tower(config_class: type[PreTrainedConfig], where: str) -> None:
    """Raises ConfigError if the model of this configuration does not take images, or needs more than images."""
    model_type = config_class.model_type
    try:
        model: Any = MODEL_MAPPING[config_class]
    except KeyError:
        raise ConfigError(f"{where}: transformers has no model without a head for {model_type}") from None
    model = model[0] if isinstance(model, tuple) else model
    parameters = list(inspect.signature(model.forward).parameters.values())[1:]
    if "pixel_values" not in [parameter.name for parameter in parameters]:
        raise ConfigError(f"{where}: {model_type} is no vision tower, it takes {parameters[0].name} in place of images")
    needed = [
        parameter.name
        for parameter in parameters
        if parameter.default is inspect.Parameter.empty
        and parameter.kind is not inspect.Parameter.VAR_KEYWORD
        and parameter.name != "pixel_values"
    ]
    if needed:
        raise ConfigError(f"{where}: {model_type} needs {', '.join(needed)} beside images, and gets images alone")


def read_model(pretrained: str, revision: str | None) -> dict[str, Any]:
    """Returns the configuration of the vision tower of a hub id or folder, a `vision_config` beside a text tower.

    Raises:
        ConfigError: it cannot be read, or is of another kind of model.
    """
    config = open_saved(AutoConfig, pretrained, "encoder", revision=revision)
    tower = config.vision_config if "vision_config" in config.sub_configs else config
    check_tower(type(tower), f"encoder.pretrained: {pretrained}")
    # The dtype of the files does not determine the dtype of training.
    return {key: value for key, value in tower.to_dict().items() if key != "dtype"}


def read_normalisation(pretrained: str, revision: str | None, config: PreTrainedConfig) -> Normalisation:
    """Returns mean and std per channel of the checkpoint's image processor; raises ConfigError without them."""
    try:
        fields, _ = ImageProcessingMixin.get_image_processor_dict(pretrained, revision=revision)
        if getattr(config, "norm_mean", None) and not fields.get("do_normalize", True):
            return customary_normalisation(config)
        return tuple(fields["image_mean"]), tuple(fields["image_std"])
    except (OSError, ValueError, KeyError, TypeError):
        mean, std = customary_normalisation(config)
        raise ConfigError(
            f"encoder: no mean and std can be read for {pretrained} (preprocessor_config.json); write them as "
            f"encoder.mean and encoder.std, for this family usually {list(mean)} and {list(std)}"
        ) from None


def customary_normalisation(config: PreTrainedConfig) -> Normalisation:
    """Returns mean and std per channel for a tower from scratch; a tower with `norm_mean` normalises images itself."""
    if getattr(config, "norm_mean", None) is not None:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return CUSTOMARY.get(config.model_type, IMAGENET)


def tower_config(model: Mapping[str, Any]) -> PreTrainedConfig:
    """Returns transformers' configuration of a tower; raises ConfigError for wrong values."""
    fields = copy.deepcopy(dict(model))
    try:
        config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    except Exception as error:  # each configuration class raises errors of its own
        raise ConfigError(f"encoder.model: it cannot be built: {' '.join(str(error).split())}") from None
    if (channels := getattr(config, "num_channels", 3)) != 3:
        raise ConfigError(f"encoder.model.num_channels: images have 3 channels, found {channels}")
    heads, width = getattr(config, "num_attention_heads", None), getattr(config, "hidden_size", None)
    if isinstance(heads, int) and isinstance(width, int):
        if heads < 1 or width % heads:
            raise ConfigError(f"encoder.model.num_attention_heads: {heads} heads do not divide a width of {width}")
        if "rope_theta" in config.to_dict() and width // heads % 4:
            raise ConfigError(
                "encoder.model: for rotary positions hidden_size / num_attention_heads must be a multiple of 4, "
                f"found {width} / {heads}"
            )
    config.tie_last_hidden_states = False  # the last layer's output is that before the norm
    return config


def own_size(config: PreTrainedConfig) -> int | None:
    """Returns the image size of the configuration in pixels per side; None if it has none."""
    return None if getattr(config, "image_size", None) is None else side_length(config, "image_size")


def check_size(image_size: int, config: PreTrainedConfig) -> None:
    """Raises ConfigError for an image that is smaller than one patch."""
    if getattr(config, "patch_size", None) is not None and image_size < (patch := side_length(config, "patch_size")):
        raise ConfigError(f"encoder.image_size: {image_size} px are less than one patch of {patch} px")


def side_length(config: PreTrainedConfig, name: str) -> int:
    """Returns the side of a square, which a configuration gives as one number or as two equal ones."""
    value = getattr(config, name)
    sides = set(value) if isinstance(value, list | tuple) else {value}
    if len(sides) != 1 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ConfigError(f"encoder.model.{name}: expected the side of a square in pixels, found {value!r}")
    return sides.pop()
