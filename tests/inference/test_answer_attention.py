"""The attention of an answer to its image equals a direct computation from queries and keys."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.inference import answer_attention as module
from fvl_lightning.inference.answer_attention import answer_attention, eager_attention, token_map
from fvl_lightning.modeling.build import BuiltModel
from tests.tiny_models import BOS, IMAGE, LLAMA, TOKENS, pixels, tiny_model, tiny_tokenizer

PROMPT, ANSWER = [BOS, 12, *[IMAGE] * TOKENS, 7, 8], [20, 21, 22]


@pytest.fixture(scope="module")
def built() -> BuiltModel:
    return BuiltModel(tiny_model(7, llama=LLAMA | {"initializer_range": 0.6}), tiny_tokenizer())


@torch.no_grad()
def directly(built: BuiltModel, asking: list[int]) -> Tensor:
    """[layers, TOKENS]: softmax(q k / sqrt(d)) at these positions, from what enters each layer."""
    ids = torch.tensor([[*PROMPT, *ANSWER]])
    output, _ = built.model.run(ids, pixels(1), use_cache=False, output_hidden_states=True)
    text, found = built.model.language_model.model.model, []
    heads, width = LLAMA["num_attention_heads"], LLAMA["hidden_size"] // LLAMA["num_attention_heads"]
    for layer, hidden in zip(text.layers, output.hidden_states, strict=False):
        x = layer.input_layernorm(hidden)
        query, key = (project(x).unflatten(-1, (-1, width)).transpose(1, 2) for project in
                      (layer.self_attn.q_proj, layer.self_attn.k_proj))  # fmt: skip
        query, key = apply_rotary_pos_emb(query, key, *text.rotary_emb(x, torch.arange(ids.shape[1])[None]))
        scores = query @ key.repeat_interleave(heads // key.shape[1], 1).transpose(2, 3) / width**0.5
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), float("-inf"))
        found.append(scores.softmax(-1)[0, :, asking, 2 : 2 + TOKENS].mean((0, 1)))
    return torch.stack(found)


def test_it_equals_a_direct_computation(built: BuiltModel) -> None:
    found = answer_attention(built, PROMPT, ANSWER, pixel_values=pixels(1))
    last = len(PROMPT) - 1
    torch.testing.assert_close(found, directly(built, [last, last + 1, last + 2]), atol=1e-6, rtol=0)
    assert found.std() > 1e-3
    assert not torch.allclose(found, directly(built, [last + 1, last + 2, last + 3]), atol=1e-4)


def test_the_attention_of_the_model_is_restored(built: BuiltModel, monkeypatch: pytest.MonkeyPatch) -> None:
    config = built.model.config.get_text_config()
    assert config._attn_implementation == "sdpa"
    with eager_attention(built.model):
        assert config._attn_implementation == "eager"
    with pytest.raises(ValueError, match="placeholders"):
        answer_attention(built, PROMPT, ANSWER)
    assert config._attn_implementation == "sdpa"
    monkeypatch.setattr(type(built.model.language_model.model), "_can_set_attn_implementation", lambda *_: False)
    with pytest.raises(ConfigError, match="llama has an attention of its own"):
        answer_attention(built, PROMPT, ANSWER, pixel_values=pixels(1))


def test_what_cannot_be_computed_is_one_sentence(built: BuiltModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        answer_attention(built, PROMPT, [])
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    with pytest.raises(ConfigError, match="of 11 tokens take"):
        answer_attention(built, PROMPT, ANSWER, pixel_values=pixels(1))


def test_a_model_without_attention_is_refused() -> None:
    sizes: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 12, "state_size": 4, "vocab_size": 40}
    mamba = BuiltModel(tiny_model(llama={"model_type": "mamba", **sizes, "pad_token_id": 0}), tiny_tokenizer())
    with pytest.raises(ConfigError, match="language model mamba"):
        answer_attention(mamba, PROMPT, ANSWER, pixel_values=pixels(1))


@pytest.mark.parametrize(
    ("fusion", "projector", "wanted"),
    [
        ("concat", "mlp", [[0, 1], [2, 3]]),
        ("concat", {"name": "pool", "factor": 2}, [[0]]),
        ("token_concat", "mlp", [[24, 28], [32, 36]]),
        ("token_concat", "per_source", [[24, 28], [32, 36]]),
        ("concat", {"name": "resampler", "queries": 4, "heads": 2}, None),
        ("interleave", "mlp", None),
    ],
)
def test_tokens_have_the_places_that_fusion_and_projector_left_them(
    fusion: str, projector: Any, wanted: list[list[int]] | None
) -> None:
    model = tiny_model(fusion=fusion, projector=projector)
    found = token_map(model, torch.arange(float(model.projector.tokens)))
    assert (None if found is None else found.tolist()) == wanted
