"""Tiny configurations of many language models, as `text_config` of the tiny model."""

from typing import Any

from tests.tiny_models import BOS, EOS, LLAMA, PAD, VOCABULARY

SPECIAL = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
SIZES = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL = {**SPECIAL, **SIZES, "max_position_embeddings": 64, "initializer_range": 0.2}
GROUPED = {**SMALL, "num_key_value_heads": 1}

FALCON = {
    **SPECIAL, "model_type": "falcon", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_kv_heads": 1, "initializer_range": 0.2,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.5, 2.0, 4.0, 8.0],
    "original_max_position_embeddings": 12,
}
"""Other frequencies where the longest position of a batch is beyond 12."""

EXACT: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "phi3": {**GROUPED, "model_type": "phi3"},
    "phi3-window": {**GROUPED, "model_type": "phi3", "sliding_window": 4},
    "phi3-longrope": {
        **GROUPED, "model_type": "phi3", "rope_parameters": LONGROPE, "original_max_position_embeddings": 12
    },
    "qwen2": {**GROUPED, "model_type": "qwen2"},
    "qwen2-window": {
        **GROUPED, "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1
    },
    "qwen3": {**GROUPED, "model_type": "qwen3", "head_dim": 8},
    "gemma3": {**GROUPED, "model_type": "gemma3_text", "head_dim": 8, "sliding_window": 4},
    "gpt2": {
        **SPECIAL, "model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 24,
        "initializer_range": 0.2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    },
    "gpt_neox": {**SMALL, "model_type": "gpt_neox"},
}
"""Models that know position_ids: rotary and learned ones, windows; a row longer than GPT-2's table is no hindrance."""

CONTAMINATED: dict[str, dict[str, Any]] = {
    "opt": {
        **SPECIAL, "model_type": "opt", "hidden_size": 16, "ffn_dim": 20, "num_hidden_layers": 2,
        "num_attention_heads": 2, "word_embed_proj_dim": 16, "max_position_embeddings": 64, "init_std": 0.2,
    },
    "falcon": FALCON,
    "falcon-alibi": {**FALCON, "alibi": True},
    "biogpt": {**SMALL, "model_type": "biogpt"},
    "bert-decoder": {**SMALL, "model_type": "bert", "is_decoder": True},
    "lfm2": {**GROUPED, "model_type": "lfm2", "layer_types": ["conv", "full_attention"]},
}
"""Causal models that ignore position_ids where the mask is made, or whose convolution runs across documents."""

BIDIRECTIONAL: dict[str, dict[str, Any]] = {
    "bert": {**SMALL, "model_type": "bert"},
    "roberta": {**SMALL, "model_type": "roberta", "max_position_embeddings": 66},
}
"""What transformers builds under the name of a causal model, and which sees everything."""

RESCALED: dict[str, dict[str, Any]] = {
    "gemma2": {**GROUPED, "model_type": "gemma2", "head_dim": 8, "sliding_window": 4, "final_logit_softcapping": 3.0},
    "gemma3-capped": {**EXACT["gemma3"], "final_logit_softcapping": 3.0},
    "granite-scaled": {
        **GROUPED, "model_type": "granite", "embedding_multiplier": 12.0, "logits_scaling": 2.0,
        "residual_multiplier": 0.5,
    },
    "cohere": {**GROUPED, "model_type": "cohere", "logit_scale": 0.5},
    "cohere2": {**GROUPED, "model_type": "cohere2", "logit_scale": 0.5, "sliding_window": 4},
}
"""Models that rescale the output of their head, or all embeddings that enter their layers."""

FAMILIES: dict[str, dict[str, Any]] = {
    **{name: EXACT[name] for name in ("llama", "phi3", "qwen2", "qwen3", "gemma3", "gpt2", "gpt_neox")},
    **{name: CONTAMINATED[name] for name in ("opt", "falcon")},
    "mistral": {**GROUPED, "model_type": "mistral"},
    "phi": {**SMALL, "model_type": "phi"},
    "gemma": {**GROUPED, "model_type": "gemma", "head_dim": 8},
    "stablelm": {**GROUPED, "model_type": "stablelm"},
    "olmo2": {**GROUPED, "model_type": "olmo2"},
    "smollm3": {**GROUPED, "model_type": "smollm3"},
    "granite": {**GROUPED, "model_type": "granite"},
    "opt-narrow": {**CONTAMINATED["opt"], "word_embed_proj_dim": 8},
    **RESCALED,
}
"""Families of language models that people bring; tied and untied heads, scaled embeddings and logits, a table narrower
than its layers."""
