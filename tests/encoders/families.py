"""Tiny towers of the families of transformers that `hf_vision` was tried with: the fields of their configurations."""

# fmt: off
from typing import Any

from tests.encoders.towers import TOWERS

PLAIN: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 24, "patch_size": 4,
}
VIT = {**PLAIN, "intermediate_size": 24}
SAM = {
    **PLAIN, "mlp_dim": 24, "output_channels": 12, "window_size": 3, "global_attn_indexes": [1], "num_pos_feats": 8,
}
SAM2 = {
    "model_type": "sam2_hiera_det_model", "hidden_size": 8, "image_size": [64, 64], "blocks_per_stage": [1, 1, 2, 1],
    "embed_dim_per_stage": [8, 16, 32, 64], "num_attention_heads_per_stage": [1, 2, 4, 8],
    "window_size_per_stage": [8, 4, 4, 2], "global_attention_blocks": [3],
}
SWIN = {
    "embed_dim": 8, "depths": [1, 1, 1], "num_heads": [1, 2, 2], "window_size": 2, "image_size": 48, "patch_size": 4,
}
CONV = {"hidden_sizes": [8, 12, 16], "depths": [1, 1, 1]}
MIXED = {
    **CONV, "num_encoder_blocks": 3, "num_attention_heads": [1, 2, 2], "patch_sizes": [7, 3, 3], "strides": [4, 2, 2],
}
PYRAMID = {**MIXED, "sr_ratios": [2, 1, 1], "mlp_ratios": [2, 2, 2]}

FAMILIES: dict[str, dict[str, Any]] = {
    **TOWERS,
    "aimv2_vision_model": VIT,
    "beit": {**VIT, "use_absolute_position_embeddings": True},
    "bit": {**CONV, "embedding_size": 8, "num_groups": 4},
    "chinese_clip_vision_model": VIT,
    "convnext": {**CONV, "num_stages": 3, "image_size": 48},
    "convnextv2": {**CONV, "num_stages": 3, "image_size": 48},
    "cvt": {"embed_dim": [8, 12, 16], "num_heads": [1, 2, 2], "depth": [1, 2, 3], "cls_token": [False, False, True]},
    "data2vec-vision": {**VIT, "use_absolute_position_embeddings": True},
    "deit": VIT,
    "dinov3_convnext": {**CONV, "image_size": 64},
    "donut-swin": SWIN,
    "dpt": {**VIT, "backbone_out_indices": [0, 1, 2], "neck_hidden_sizes": [4, 4, 4, 4]},
    "focalnet": {
        "embed_dim": 8, "hidden_sizes": [8, 16, 32], "depths": [1, 1, 1], "focal_levels": [1, 1, 1],
        "focal_windows": [3, 3, 3], "image_size": 48,
    },
    "glpn": PYRAMID,
    "hiera": {
        "embed_dim": 8, "depths": [1, 1, 1], "num_heads": [1, 2, 2], "image_size": [64, 64], "num_query_pool": 2,
    },
    "ijepa": VIT,
    "internvl_vision": VIT,
    "levit": {
        "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 2, 2], "depths": [1, 1, 1], "key_dim": [4, 4, 4],
        "image_size": 96,
    },
    "mlcd_vision_model": VIT,
    "mobilenet_v1": {"depth_multiplier": 0.1, "image_size": 64},
    "mobilenet_v2": {"depth_multiplier": 0.1, "image_size": 64},
    "mobilevit": {
        "hidden_sizes": [8, 12, 16], "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 24], "num_attention_heads": 2,
        "image_size": 64,
    },
    "mobilevitv2": {"width_multiplier": 0.1, "image_size": 64},
    "pixio": PLAIN,
    "poolformer": {**CONV, "num_encoder_blocks": 3, "patch_sizes": [7, 3, 3], "strides": [4, 2, 2],
                   "padding": [2, 1, 1], "mlp_ratio": 2.0},
    "pvt": {**MIXED, "patch_sizes": [4, 2, 2], "sequence_reduction_ratios": [2, 1, 1], "mlp_ratios": [2, 2, 2],
            "image_size": 48},
    "pvt_v2": {**PYRAMID, "image_size": 48},
    "radio": {**PLAIN, "max_img_size": 48},
    "regnet": {**CONV, "embedding_size": 8, "groups_width": 4},
    "resnet": {**CONV, "embedding_size": 8, "layer_type": "basic"},
    "sam_vision_model": SAM,
    "sam_hq_vision_model": SAM,
    "sam2_hiera_det_model": SAM2,
    "sam2_vision_model": {"backbone_config": SAM2, "backbone_channel_list": [64, 32, 16, 8]},
    "sam3_vit_model": {**VIT, "window_size": 3, "global_attn_indexes": [1]},
    "sapiens2": VIT,
    "segformer": PYRAMID,
    "swiftformer": {"embed_dims": [8, 12, 16], "depths": [1, 1, 1], "downsamples": [True, True, True]},
    "swin": SWIN,
    "swinv2": SWIN,
    "textnet": {"image_size": [64, 64]},
    "tipsv2_vision_model": PLAIN,
    "vit": VIT,
    "vit_msn": VIT,
    "vitdet": {**PLAIN, "pretrain_image_size": 24},
}
"""By model type."""
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "siglip2_vision_model": (VIT, "siglip2_vision_model needs pixel_attention_mask, spatial_shapes beside images"),
    "gemma4_vision": (VIT, "gemma4_vision needs pixel_position_ids beside images"),
    "idefics3_vision": (VIT, "idefics3_vision cannot be run on images of 24 px: "),
    "pixtral": (VIT, "last cannot be a source, its output [1, 72, 16] is no square map of the image"),
    "qwen2_5_vl_vision": ({}, "qwen2_5_vl_vision is no vision tower, it takes hidden_states in place of images"),
    "qwen3_vl_vision": ({}, "qwen3_vl_vision is no vision tower, it takes hidden_states in place of images"),
    "pe_video_encoder": ({}, "pe_video_encoder is no vision tower, it takes pixel_values_videos in place of images"),
    "vjepa2": ({}, "vjepa2 is no vision tower, it takes pixel_values_videos in place of images"),
    "videomae": (VIT, "videomae cannot be run on images of 24 px: "),
    "vit_mae": (VIT, "vit_mae draws random numbers, so that its tokens are no map"),
    "yolos": ({**VIT, "image_size": [24, 24]}, "last cannot be a source, its output [2, 137, 16] is no square map"),
    "swin2sr": (SWIN, "swin2sr cannot be run on images of 48 px: "),
    "hgnet_v2": ({}, "hgnet_v2 returns no hidden states of its layers"),
    "metaclip_2_vision_model": (VIT, "transformers has no model without a head for metaclip_2_vision_model"),
    "timm_wrapper": ({}, "TimmWrapperModel requires the timm library"),
    "dinat": ({}, "DinatModel requires the natten library"),
    "bert": ({}, "bert is no vision tower, it takes input_ids in place of images"),
}
"""By model type, with the sentence that names what the family lacks."""
# fmt: on


def entry_of(model_type: str, fields: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The slot entry of a tower; 32 px where its configuration has no image size."""
    size = {} if "image_size" in fields else {"image_size": 64 if "sam2" in model_type else 32}
    return {"name": "hf_vision", "model": {**fields, "model_type": model_type}, **size, **changes}
