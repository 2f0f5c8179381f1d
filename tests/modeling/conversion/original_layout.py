"""Checkpoints in the layout of the released Florence-VL: every key and shape from the two configurations."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.encoders import original

Shapes = dict[str, tuple[int, ...]]

TOWER: dict[str, Any] = json.loads((original.TOWER / "config.json").read_text(encoding="utf-8"))
PHI: dict[str, Any] = {
    "architectures": ["LlavaPhiForCausalLM"],
    "model_type": "llava_phi",
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "original_max_position_embeddings": 32,
    "rope_theta": 10000.0,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.5, 2.0, 4.0, 8.0]},
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "torch_dtype": "float32",
    "mm_hidden_size": 16,
    "mm_projector_type": "mlp3x_gelu",
    "mm_vision_tower": "someone/a-tower-of-the-hub",
}
"""A Phi-3 of a few thousand parameters over the fixture's tower, with the older spelling of scaled rotary positions."""


def shapes(config: Mapping[str, Any], tower: Mapping[str, Any]) -> Shapes:
    """Every key of a released checkpoint, all copies of the token table among them."""
    vision = {f"vision_tower.{name}": shape for name, shape in _davit(tower["vision_config"]).items()}
    inside = vision | _projection(tower["vision_config"]) | _bart(tower["text_config"])
    found = {f"model.vision_tower.vision_tower.{name}": shape for name, shape in inside.items()}
    return found | _projector(config) | _language_model(config)


def random_weights(config: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """A checkpoint of `config` over the fixture's tower, with small random values."""
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes(config, TOWER).items()}


def save(
    folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], files: int = 1, bin: bool = False
) -> None:
    """A checkpoint's folder: configuration, tokenizer, and weights in `files` files, with an index if several."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    original.save_tokenizer(folder, config["vocab_size"])
    save_weights(folder, weights, files, bin)


def save_weights(folder: Path, weights: Mapping[str, Tensor], files: int = 1, bin: bool = False) -> None:
    """The weights alone, dealt out over the files."""
    stem, suffix = ("pytorch_model", "bin") if bin else ("model", "safetensors")
    weight_map = {}
    for number in range(files):
        name = f"{stem}.{suffix}" if files == 1 else f"{stem}-{number + 1:05d}-of-{files:05d}.{suffix}"
        part = {key: weights[key] for key in list(weights)[number::files]}
        if bin:
            torch.save(part, folder / name)
        else:
            save_file(part, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    if files > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index), encoding="utf-8")


def _linear(name: str, out: int, into: int) -> Shapes:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def _norm(name: str, dim: int) -> Shapes:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def _davit(vision: Mapping[str, Any]) -> Shapes:
    found: Shapes = {}
    below = 3
    for stage, (dim, depth) in enumerate(zip(vision["dim_embed"], vision["depths"], strict=True)):
        side = vision["patch_size"][stage]
        found |= {f"convs.{stage}.proj.weight": (dim, below, side, side), f"convs.{stage}.proj.bias": (dim,)}
        found |= _norm(f"convs.{stage}.norm", below if vision["patch_prenorm"][stage] else dim)
        for block in range(depth):
            for kind, attention in (("spatial_block", "window_attn"), ("channel_block", "channel_attn")):
                at = f"blocks.{stage}.{block}.{kind}"
                for conv in ("conv1", "conv2"):
                    found |= {f"{at}.{conv}.fn.dw.weight": (dim, 1, 3, 3), f"{at}.{conv}.fn.dw.bias": (dim,)}
                found |= _norm(f"{at}.{attention}.norm", dim) | _norm(f"{at}.ffn.norm", dim)
                found |= _linear(f"{at}.{attention}.fn.qkv", 3 * dim, dim)
                found |= _linear(f"{at}.{attention}.fn.proj", dim, dim)
                found |= _linear(f"{at}.ffn.fn.net.fc1", 4 * dim, dim) | _linear(f"{at}.ffn.fn.net.fc2", dim, 4 * dim)
        below = dim
    return found


def _projection(vision: Mapping[str, Any]) -> Shapes:
    dim, out = vision["dim_embed"][-1], vision["projection_dim"]
    places = vision["image_pos_embed"]["max_pos_embeddings"]
    return {
        "image_projection": (dim, out),
        **_norm("image_proj_norm", out),
        "image_pos_embed.row_embeddings.weight": (places, dim // 2),
        "image_pos_embed.column_embeddings.weight": (places, dim - dim // 2),
        "visual_temporal_embed.pos_idx_to_embed": (vision["visual_temporal_embedding"]["max_temporal_embeddings"], dim),
    }


def _bart(text: Mapping[str, Any]) -> Shapes:
    words, dim = text["vocab_size"], text["d_model"]
    found: Shapes = {
        "language_model.final_logits_bias": (1, words),
        "language_model.lm_head.weight": (words, dim),
        "language_model.model.shared.weight": (words, dim),
    }
    for side, attentions in (("encoder", ("self_attn",)), ("decoder", ("self_attn", "encoder_attn"))):
        at = f"language_model.model.{side}"
        found |= {f"{at}.embed_tokens.weight": (words, dim), **_norm(f"{at}.layernorm_embedding", dim)}
        found[f"{at}.embed_positions.weight"] = (text["max_position_embeddings"] + 2, dim)
        for layer in (f"{at}.layers.{number}" for number in range(text[f"{side}_layers"])):
            for attention in attentions:
                found |= _norm(f"{layer}.{attention}_layer_norm", dim)
                for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    found |= _linear(f"{layer}.{attention}.{part}", dim, dim)
            width = text[f"{side}_ffn_dim"]
            found |= _linear(f"{layer}.fc1", width, dim) | _linear(f"{layer}.fc2", dim, width)
            found |= _norm(f"{layer}.final_layer_norm", dim)
    return found


def _projector(config: Mapping[str, Any]) -> Shapes:
    at, dim = "model.mm_projector.encoder_mlp", config["hidden_size"]
    found = _linear(f"{at}.0", dim, 4 * config["mm_hidden_size"])
    for number in range(1, int(config["mm_projector_type"][3])):
        found |= _linear(f"{at}.{number}.1", dim, dim)
    return found


def _language_model(config: Mapping[str, Any]) -> Shapes:
    dim, width, words = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    keys = dim // config["num_attention_heads"] * config["num_key_value_heads"]
    if config["model_type"] == "llava_phi":
        parts = {"self_attn.qkv_proj": (dim + 2 * keys, dim), "mlp.gate_up_proj": (2 * width, dim)}
    else:
        parts = {f"self_attn.{name}_proj": (out, dim) for name, out in (("q", dim), ("k", keys), ("v", keys))}
        parts |= {"mlp.gate_proj": (width, dim), "mlp.up_proj": (width, dim)}
    parts |= {"self_attn.o_proj": (dim, dim), "mlp.down_proj": (dim, width)}
    found: Shapes = {
        "model.embed_tokens.weight": (words, dim), "model.norm.weight": (dim,), "lm_head.weight": (words, dim)
    }
    for number in range(config["num_hidden_layers"]):
        at = f"model.layers.{number}"
        found |= {f"{at}.{name}.weight": shape for name, shape in parts.items()}
        found |= {f"{at}.input_layernorm.weight": (dim,), f"{at}.post_attention_layernorm.weight": (dim,)}
    return found
