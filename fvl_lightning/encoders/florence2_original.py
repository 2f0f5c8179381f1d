"""Florence-2 in Microsoft's layout: its config.json, the names of its parameters, and its tokenizer.

transformers' native classes use other names and transpose one matrix. The files show their layout: only the original's
vision_config has `dim_embed`.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fvl_lightning.core.errors import DataError

RenamedWeights = dict[str, tuple[str | None, Tensor]]
"""{the original's name: (the kit's name or None, the tensor in the kit's layout)}"""

POOLING = ["spatial_avg_pool", "temporal_avg_pool"]
VISION_FIELDS = (
    "depths", "num_heads", "num_groups", "patch_size", "patch_stride", "patch_padding", "patch_prenorm", "window_size",
    "projection_dim",
)  # fmt: skip
TEXT_FIELDS = (
    "vocab_size", "d_model", "encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads",
    "encoder_ffn_dim", "decoder_ffn_dim", "max_position_embeddings",
)  # fmt: skip
TEXT_FIELDS_WITH_DEFAULTS = (
    "activation_function", "scale_embedding", "dropout", "attention_dropout", "activation_dropout", "init_std",
    "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id",
)  # fmt: skip

DECODER = "language_model.model.decoder."
TABLES = tuple(
    f"language_model.model.{name}.weight" for name in ("shared", "encoder.embed_tokens", "decoder.embed_tokens")
)
"""Copies of the token embeddings, any of which may be missing; the original embeds prompts with the first."""
IGNORED_KEYS = ("language_model.lm_head.weight", "language_model.final_logits_bias")
"""The decoder's head, which this kit ties to the token embeddings, and its constant bias."""
IMAGE_PROJECTION = "image_projection"
TOWER_RULES = (
    (re.compile(r"^(convs\.\d+)\.proj\."), r"\1.conv."),
    (re.compile(r"\.(conv[12])\.fn\.dw\."), r".\1."),
    (re.compile(r"\.(?:window|channel)_attn\.norm\."), ".norm1."),
    (re.compile(r"\.ffn\.norm\."), ".norm2."),
    (re.compile(r"\.(?:fn|net)(?=\.)"), ""),
)
PREFIX_RULES = {
    "image_pos_embed.": "image_projector.image_position_embed.",
    "image_proj_norm.": "image_projector.image_proj_norm.",
    "visual_temporal_embed.": "image_projector.visual_temporal_embed.",
    "language_model.model.encoder.": "text_encoder.",
    DECODER: "decoder.",
}
TAGS = ("cap", "ncap", "dcap", "grounding", "seg")
MORE_TAGS = ("region_cap", "region_to_desciption", "proposal", "poly")
ADDED_TOKENS = (
    "<od>", "</od>", "<ocr>", "</ocr>",
    *(f"<loc_{k}>" for k in range(1000)),
    *(token for name in TAGS for token in (f"<{name}>", f"</{name}>")), "<sep>",
    *(token for name in MORE_TAGS for token in (f"<{name}>", f"</{name}>")), "<and>",
)  # fmt: skip
"""The tokens that the original's processor adds to the tokenizer, in its order and spelling."""


def is_original(config: Mapping[str, Any]) -> bool:
    """Returns whether a config.json has Microsoft's layout."""
    vision = config.get("vision_config")
    return isinstance(vision, Mapping) and "dim_embed" in vision


def check_original(config: Mapping[str, Any], where: str) -> None:
    """Raises DataError for a config.json that lacks fields, or describes a tower that was never released."""
    require(config, ("vision_config", "text_config"), where)
    for part, fields in (
        ("vision_config", ("dim_embed", *VISION_FIELDS, "image_pos_embed", "visual_temporal_embedding")),
        ("text_config", TEXT_FIELDS),
    ):
        require(config[part], fields, f"{part} in {where}")
    vision = config["vision_config"]
    for part, kind, field in (
        ("image_pos_embed", "learned_abs_2d", "max_pos_embeddings"),
        ("visual_temporal_embedding", "COSINE", "max_temporal_embeddings"),
    ):
        require(vision[part], (field,), f"vision_config.{part} in {where}")
        if vision[part].get("type") != kind:
            raise DataError(f"{where} has a {part} of type '{vision[part].get('type')}', expected '{kind}'")
    if vision.get("image_feature_source", POOLING) != POOLING:
        found = ", ".join(map(str, vision["image_feature_source"]))
        raise DataError(f"{where} pools its images by {found}, expected {', '.join(POOLING)}")


def original_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a checked config.json with the names of transformers' native classes."""
    vision, text = config["vision_config"], config["text_config"]
    optional = {name: text[name] for name in TEXT_FIELDS_WITH_DEFAULTS if name in text}
    return {
        "vision_config": {
            **{name: vision[name] for name in VISION_FIELDS},
            **({"drop_path_rate": vision["drop_path_rate"]} if "drop_path_rate" in vision else {}),
            "embed_dim": vision["dim_embed"],
            "max_position_embeddings": vision["image_pos_embed"]["max_pos_embeddings"],
            "max_temporal_embeddings": vision["visual_temporal_embedding"]["max_temporal_embeddings"],
        },
        "text_config": {"model_type": "bart", **{name: text[name] for name in TEXT_FIELDS}, **optional},
    }


def rename_weights(weights: Mapping[str, Tensor], keep_decoder: bool) -> RenamedWeights:
    """Returns views of the original's weights under the names of Florence2Encoder.

    It leaves out the head and its bias, copies of the token embeddings, and the decoder unless it is kept.
    """
    table = next((name for name in TABLES if name in weights), None)
    left_out = {*IGNORED_KEYS, *TABLES} - {table}
    return {
        name: (_kit_name(name), tensor.T if name == IMAGE_PROJECTION else tensor)
        for name, tensor in weights.items()
        if name == table or not (name in left_out or (name.startswith(DECODER) and not keep_decoder))
    }


def add_tokens(tokenizer: Any, vocabulary: int) -> None:
    """Adds the tokens that the original's processor adds, if they are missing and the model has rows for them."""
    if ADDED_TOKENS[0] not in tokenizer.get_vocab() and len(tokenizer) + len(ADDED_TOKENS) <= vocabulary:
        tokenizer.add_tokens(list(ADDED_TOKENS), special_tokens=True)


def require(content: Any, fields: tuple[str, ...], where: str) -> None:
    """Raises DataError for a configuration that lacks fields."""
    lacking = [name for name in fields if not isinstance(content, Mapping) or name not in content]
    if lacking:
        raise DataError(f"{where} lacks {', '.join(lacking)}, which the model cannot be built without")


def _kit_name(name: str) -> str | None:
    """Returns a parameter's name in Florence2Encoder; None if no rule matches."""
    if name in TABLES:
        return "text_encoder.embed_tokens.weight"
    if name == IMAGE_PROJECTION:
        return "image_projector.image_projection.weight"
    if name.startswith("vision_tower."):
        inner = name.removeprefix("vision_tower.")
        for pattern, native in TOWER_RULES:
            inner = pattern.sub(native, inner)
        return f"vision_tower.{inner}"
    for original, kit in PREFIX_RULES.items():
        if name.startswith(original):
            return kit + name.removeprefix(original)
    return None
