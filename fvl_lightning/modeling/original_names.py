"""Parameter names of the original Florence-VL and what they are called here.

The language model keeps its names under a prefix. The tower is Microsoft's Florence-2, whose names and one layout (a
bare (in, out) matrix) differ from transformers' native classes. Some keys have no use here; `ignored` lists them.
"""

import re
from collections.abc import Collection

from torch import Tensor

TOWER = "model.vision_tower.vision_tower."
PROJECTOR = "model.mm_projector."
DECODER = f"{TOWER}language_model.model.decoder."
TABLES = tuple(f"{TOWER}language_model.model.{name}.weight" for name in (
    "shared", "encoder.embed_tokens", "decoder.embed_tokens"
))
"""Copies of the prompts' token table, of which any may be left out; the original embeds prompts with the first."""
UNUSED = re.compile(
    rf"{re.escape(TOWER)}language_model\.(lm_head\.weight|final_logits_bias)|.*\.rotary_emb\.inv_freq"
)
"""The head of Florence-2's decoder (tied to the table here) and its constant bias, and what a model computes."""
LANGUAGE_MODEL_HEAD = "lm_head.weight"
LINEAR = re.compile(rf"{re.escape(PROJECTOR)}encoder_mlp\.(?:0|(\d+)\.1)\.(weight|bias)")
TOWER_RULES = (
    (re.compile(r"^(convs\.\d+)\.proj\."), r"\1.conv."),
    (re.compile(r"\.(conv[12])\.fn\.dw\."), r".\1."),
    (re.compile(r"\.(?:window|channel)_attn\.norm\."), ".norm1."),
    (re.compile(r"\.ffn\.norm\."), ".norm2."),
    (re.compile(r"\.(?:fn|net)(?=\.)"), ""),
)
BEGINNINGS = {
    f"{TOWER}image_pos_embed.": "encoder.image_projector.image_position_embed.",
    f"{TOWER}image_proj_norm.": "encoder.image_projector.image_proj_norm.",
    f"{TOWER}visual_temporal_embed.": "encoder.image_projector.visual_temporal_embed.",
    f"{TOWER}language_model.model.encoder.": "encoder.text_encoder.",
    DECODER: "encoder.decoder.",
}
IMAGE_PROJECTION = f"{TOWER}image_projection"


def ignored(name: str, keep_decoder: bool, tied: bool) -> bool:
    """Whether a key of the original is left out on purpose.

    These are Florence-2's head, the decoder unless it is kept, the language model's head where it is tied, and rotary
    frequencies. (Of the copies of the token table `table` chooses one.)
    """
    if name.startswith(DECODER) and not keep_decoder:
        return True
    return UNUSED.fullmatch(name) is not None or (tied and name == LANGUAGE_MODEL_HEAD)


def table(names: Collection[str]) -> str | None:
    """The copy of the prompts' token table that is read."""
    return next((name for name in TABLES if name in names), None)


def our_name(name: str) -> str | None:
    """The parameter's name in FlorenceVLForConditionalGeneration; None for a name that no rule speaks of."""
    if name in TABLES:
        return "encoder.text_encoder.embed_tokens.weight"
    if name == IMAGE_PROJECTION:
        return "encoder.image_projector.image_projection.weight"
    if name.startswith(f"{TOWER}vision_tower."):
        inner = name.removeprefix(f"{TOWER}vision_tower.")
        for pattern, native in TOWER_RULES:
            inner = pattern.sub(native, inner)
        return f"encoder.vision_tower.{inner}"
    for theirs, ours in BEGINNINGS.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    linear = LINEAR.fullmatch(name)
    if linear:
        return f"projector.layers.{2 * int(linear[1] or 0)}.{linear[2]}"  # a GELU stands before each but the first
    if name.startswith((PROJECTOR, "model.vision_tower.")):
        return None
    return f"language_model.model.{name}" if name.startswith("model.") or name == LANGUAGE_MODEL_HEAD else None


def our_value(name: str, tensor: Tensor) -> Tensor:
    """The original's value under `name` in the layout it has here; a view of `tensor`."""
    return tensor.T if name == IMAGE_PROJECTION else tensor


def projector_depth(names: Collection[str]) -> int:
    """Linear layers of the projector that the keys hold."""
    return sum(name.endswith(".weight") and LINEAR.fullmatch(name) is not None for name in names)
