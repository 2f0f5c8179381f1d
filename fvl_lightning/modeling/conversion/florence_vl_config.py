"""Converts the configuration files of an original Florence-VL checkpoint to the configuration of this kit."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from datamodules.images.transforms import Fit
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.weight_files import read_json
from fvl_lightning.encoders.florence2 import Florence2Encoder
from fvl_lightning.encoders.florence2_original import check_original, original_sizes, require
from fvl_lightning.modeling.configuration import FlorenceVLConfig

LANGUAGE_MODELS = {"llava_llama": "llama", "llava_phi": "phi3"}
"""{model type of the original: model type of its language model in transformers}"""
PROMPT_IDS = {
    "caption": [0, 47066, 21700, 11, 4617, 99, 16, 2343, 11, 5, 2274, 4, 2],
    "ocr": [0, 2264, 16, 5, 2788, 11, 5, 2274, 116, 2],
    "grounding": [0, 574, 22486, 5, 8720, 11, 5, 2274, 6, 19, 49, 24173, 4, 2],
}
"""Token ids of the released prompts in the original's code, without padding, which the encoder adds."""
ROPE_TYPES = ("default", "su", *ROPE_INIT_FUNCTIONS)
"""Types of rotary position embeddings; su is the older name of longrope."""
IMAGE_FITS: dict[Any, Fit] = {"pad": "pad", "square": "stretch", None: "stretch"}
"""{image_aspect_ratio of the original: the fit of images to a square in this kit}"""
IGNORED_FIELDS = {"model_type", "architectures", "auto_map", "_name_or_path", "transformers_version", "torch_dtype"}
SIZE_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "mm_hidden_size",
)  # fmt: skip


@dataclasses.dataclass
class ImportOptions:
    """Choices that public material on the original leaves open, or that a user may want to change."""

    pooled_token: Literal["keep", "drop"] = "keep"
    prompt_pads: Literal["attend", "mask"] = "attend"
    decoder: Literal["keep", "drop"] = "drop"


def read_config(checkpoint: Path) -> dict[str, Any]:
    """Returns the config.json of a checkpoint; raises DataError if it is not a Florence-VL's, or lacks fields."""
    if not checkpoint.is_dir():
        raise DataError(f"there is no folder {checkpoint}")
    path = checkpoint / "config.json"
    config = read_json(path)
    if str(config.get("model_type")) not in LANGUAGE_MODELS:
        allowed = " and ".join(LANGUAGE_MODELS)
        raise DataError(f"{path} is of a model of type '{config.get('model_type')}', Florence-VL's are {allowed}")
    require(config, (*SIZE_FIELDS, "mm_projector_type"), str(path))
    for name in SIZE_FIELDS:
        if not isinstance(config[name], int) or config[name] < 1:
            raise DataError(f"{path} says {name}: {config[name]!r}, expected a whole number from 1 up")
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default")) if isinstance(scaling, Mapping) else scaling
    if kind not in ROPE_TYPES:
        raise DataError(f"{path} says rope_scaling of type {kind!r}, expected one of {', '.join(ROPE_TYPES)}")
    return config


def read_tower_config(folder: Path) -> dict[str, Any]:
    """Returns the config.json of a tower in Microsoft's layout; raises DataError if it is another, or lacks fields."""
    path = folder / "config.json"
    config = read_json(path)
    check_original(config, str(path))
    return config


def imported_config(
    config: Mapping[str, Any], tower: Mapping[str, Any], image_size: int, image_token_id: int, options: ImportOptions
) -> FlorenceVLConfig:
    """Returns the kit's configuration of a checkpoint.

    Args:
        config: the checked config.json of the checkpoint.
        tower: the checked config.json of its vision tower.
        image_size: pixels per side.
        image_token_id: the id of the image placeholder.
        options: the choices of the import.

    Raises:
        DataError: the two do not fit each other, or the projector is not mlp<N>x_gelu.
    """
    depth = re.fullmatch(r"mlp([1-9]\d?)x_gelu", str(config["mm_projector_type"]))
    if depth is None:
        raise DataError(f"mm_projector_type is '{config['mm_projector_type']}', expected mlp<N>x_gelu")
    width = tower["text_config"]["d_model"]
    if config["mm_hidden_size"] != width:
        raise DataError(
            f"the checkpoint is made for a tower of width {config['mm_hidden_size']} (mm_hidden_size), and the tower's "
            f"text_config.d_model is {width}; name the folder of its own tower with --vision-tower"
        )
    dtype = config.get("torch_dtype", "float32")
    encoder = Florence2Encoder.Config(
        model=original_sizes(tower),
        image_size=image_size,
        pooled_token=options.pooled_token,
        prompt_pads=options.prompt_pads,
        decoder=options.decoder,
        prompt_ids=PROMPT_IDS,
    )
    model_type = LANGUAGE_MODELS[config["model_type"]]
    known = {*CONFIG_MAPPING[model_type]().to_dict(), "rope_theta", "rope_scaling"} - IGNORED_FIELDS
    text = {name: value for name, value in config.items() if name in known}
    return FlorenceVLConfig(
        encoder={"name": "florence2", **dataclasses.asdict(encoder)},
        fusion={"name": "concat"},
        projector={"name": "mlp", "depth": int(depth[1])},
        language_model={"name": "causal"},
        image_token_id=image_token_id,
        text_config={**text, "model_type": model_type, "dtype": dtype},
        dtype=dtype,
    )


def image_fit(config: Mapping[str, Any]) -> Fit:
    """Returns how images that are not square were fitted; raises DataError if this kit does not support it."""
    kind = config.get("image_aspect_ratio")
    if kind not in IMAGE_FITS:
        raise DataError(f"image_aspect_ratio is '{kind}', expected one of {', '.join(map(str, IMAGE_FITS))}")
    return IMAGE_FITS[kind]
