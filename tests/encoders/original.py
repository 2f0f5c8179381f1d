"""The numerical fixture of the original Florence-VL code, where it is at hand, as our components take it."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from fvl_lightning.encoders.florence2 import Florence2Encoder

FOLDER = Path(__file__).resolve().parents[2].parent / "shared" / "parity"
TASKS = ("caption", "ocr", "grounding")
SOURCES = ["davit", *TASKS]
VISION_FIELDS = (
    "depths",
    "num_heads",
    "num_groups",
    "patch_size",
    "patch_stride",
    "patch_padding",
    "patch_prenorm",
    "window_size",
    "projection_dim",
)
TEXT_FIELDS = (
    "vocab_size",
    "d_model",
    "encoder_layers",
    "decoder_layers",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "max_position_embeddings",
    "scale_embedding",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "decoder_start_token_id",
)

needs_original = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"the fixture of the original is not in {FOLDER}")


@cache
def tensors(name: str) -> dict[str, Tensor]:
    """One safetensors file of the fixture."""
    return load_file(FOLDER / name)


@cache
def expected() -> dict[str, Any]:
    """Losses, gradient norms and generations."""
    return json.loads((FOLDER / "llama_expected.json").read_text(encoding="utf-8"))


def encoder_config(**changes: Any) -> Florence2Encoder.Config:
    """The original tower's sizes and prompts as a Config of ours."""
    theirs = json.loads((FOLDER / "vision_tower" / "config.json").read_text(encoding="utf-8"))
    vision, text = theirs["vision_config"], theirs["text_config"]
    model = {
        "vision_config": {"embed_dim": vision["dim_embed"], **{name: vision[name] for name in VISION_FIELDS}},
        "text_config": {"model_type": "bart", **{name: text[name] for name in TEXT_FIELDS}},
    }
    ids = dict(zip(TASKS, tensors("vision_io.safetensors")["task_ids"].tolist(), strict=True))
    fields = {"model": model, "prompt_ids": ids, "prompt_pads": "attend", "pooled_token": "keep", "sources": SOURCES}
    return Florence2Encoder.Config(**fields | {"image_size": 128} | changes)


def encoder_weights() -> dict[str, Tensor]:
    """The tower's weights in the released layout, under the names of transformers' native classes; README.md there."""
    found: dict[str, Tensor] = {}
    prefix = "model.vision_tower.vision_tower."
    for name, tensor in tensors("llama/model.safetensors").items():
        if not name.startswith(prefix):
            continue
        name = name.removeprefix(prefix)
        if name.startswith("vision_tower."):
            name = name.replace(".proj.", ".conv.") if ".convs." in name else name
            name = re.sub(r"conv([12])\.fn\.dw\.", r"conv\1.", name)
            name = re.sub(r"(window|channel)_attn\.norm\.", "norm1.", name)
            name = name.replace("ffn.norm.", "norm2.").replace(".fn.", ".").replace(".net.", ".")
        elif name == "image_projection":
            name, tensor = "image_projector.image_projection.weight", tensor.T.contiguous()
        elif name.startswith(("image_pos_embed", "image_proj_norm", "visual_temporal_embed")):
            name = "image_projector." + name.replace("image_pos_embed", "image_position_embed")
        elif name.startswith("language_model.model.encoder."):
            name = name.replace("language_model.model.encoder", "text_encoder")
        elif name == "language_model.model.shared.weight":
            name = "text_encoder.embed_tokens.weight"
        else:
            continue
        found[name] = tensor.float()
    return found


def encoder(**changes: Any) -> Florence2Encoder:
    """Our encoder with the original's weights, in eval mode; every weight must find its place."""
    built = Florence2Encoder(encoder_config(**changes))
    built.load_state_dict(encoder_weights())
    return built.eval()
