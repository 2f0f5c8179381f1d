"""Vision towers of three layers, one of each family of `hf_vision`, and whole models around an encoder's entry."""

from typing import Any

from fvl_lightning.core.config.loading import Choice, choose
from fvl_lightning.encoders.base import Encoder
from fvl_lightning.modeling.configuration import FlorenceVLConfig
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration
from fvl_lightning.modeling.initialization import initialize
from tests.tiny_models import IMAGE, LLAMA, initialized

_SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
CLIP = {**_SIZES, "model_type": "clip_vision_model", "intermediate_size": 24, "initializer_range": 0.1}
SIGLIP = {**_SIZES, "model_type": "siglip_vision_model", "intermediate_size": 24}
DINOV2 = {**_SIZES, "model_type": "dinov2", "mlp_ratio": 2, "initializer_range": 0.1}
DINOV2_WITH_REGISTERS = {**DINOV2, "model_type": "dinov2_with_registers", "num_register_tokens": 2}
DINOV3 = {
    **_SIZES,
    "model_type": "dinov3_vit",
    "intermediate_size": 24,
    "num_register_tokens": 4,
    "initializer_range": 0.1,
    "pos_embed_rescale": 2.0,
}
TOWERS = {model["model_type"]: model for model in (CLIP, SIGLIP, DINOV2, DINOV2_WITH_REGISTERS, DINOV3)}
"""By model type; patches of 4 px make a grid of 4 x 4 of 16 px."""


def encoder_of(entry: dict[str, Any], seed: int = 0) -> Encoder:
    """What a slot entry says, with its initial values, in eval mode."""
    choice = choose("encoder", entry)
    encoder = choice.component(choice.component.resolve(choice.config))
    return initialized("encoder", encoder, seed).eval()


def whole_model(entry: dict[str, Any], fusion: str = "gated", seed: int = 0) -> FlorenceVLForConditionalGeneration:
    """A tiny model around the encoder of a slot entry, with its initial values, in eval mode."""
    choice = choose("encoder", entry)
    resolved = Choice("encoder", choice.name, choice.component.resolve(choice.config))
    config = FlorenceVLConfig(
        encoder=resolved.as_dict(),
        fusion={"name": fusion},
        projector={"name": "mlp"},
        language_model={"name": "causal"},
        image_token_id=IMAGE,
        text_config=LLAMA,
    )
    model = FlorenceVLForConditionalGeneration(config)
    initialize(model, seed)
    return model.eval()
