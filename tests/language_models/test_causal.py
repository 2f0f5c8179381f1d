"""A pretrained language model is loaded completely or refused; its files are read, and unsupported models are named."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Gemma3Config, LlamaConfig, LlamaForCausalLM

from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.language_models.causal import CausalLanguageModel
from fvl_lightning.modeling.initialization import initialize
from tests.modeling.architectures import BIDIRECTIONAL, CONTAMINATED, FAMILIES, GROUPED
from tests.tiny_models import EOS, LLAMA, VOCABULARY, initialized

Weights = dict[str, Tensor]
LAYER = "model.layers.1.mlp.up_proj.weight"


def saved(folder: Path, edit: Callable[[Weights], Weights] = dict, **changes: Any) -> LlamaForCausalLM:
    """A small Llama in `folder`, its weights edited after it was saved; returns the one that was saved."""
    torch.manual_seed(0)
    fields = {key: value for key, value in LLAMA.items() if key != "model_type"} | {"tie_word_embeddings": False}
    model = LlamaForCausalLM(LlamaConfig(**fields | changes))
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    weights = edit(load_file(file))
    save_file({name: value.contiguous().clone() for name, value in weights.items()}, file, {"format": "pt"})
    return model


def load(folder: Path) -> CausalLanguageModel:
    model = CausalLanguageModel(CausalLanguageModel.resolve(CausalLanguageModel.Config(pretrained=str(folder))))
    model.load_pretrained()
    return model


def without(*names: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: value for name, value in weights.items() if name not in names}


def under(prefix: str) -> Callable[[Weights], Weights]:
    return lambda weights: {prefix + name: value for name, value in weights.items()}


def another_layer(weights: Weights) -> Weights:
    more = {name.replace("layers.1.", "layers.2."): value for name, value in weights.items() if "layers.1." in name}
    return weights | more


@pytest.mark.parametrize(
    ("edit", "changes", "says"),
    [
        (without(LAYER), {}, f"lacks 1 of its weights, such as {LAYER}"),
        (without("lm_head.weight"), {}, "lacks 1 of its weights, such as lm_head.weight"),
        (without("model.embed_tokens.weight"), {"tie_word_embeddings": True}, "lacks 2 of its weights, such as lm_h"),
        (under("language_model."), {}, "lacks 21 of its weights, .* 18 more and holds 21 weights without a place"),
        (under("base_model.model."), {}, "lacks 21 of its weights, .* such as base_model.model.lm_head.weight"),
        (another_layer, {}, "holds 9 weights without a place in the model, such as model.layers.2.input_layernorm"),
        (lambda w: w | {"v_head.weight": torch.ones(1, 12)}, {}, "holds 1 weights without .* such as v_head.weight"),
        (lambda w: w | {LAYER: torch.ones(8, 12)}, {}, rf"of other sizes .* such as {LAYER} \(8, 12\) for \(20, 12\)"),
        (lambda w: w | {LAYER: w[LAYER].char()}, {}, f"numbers of type I8, such as {LAYER}"),
        (lambda w: w | {LAYER: w[LAYER].to(torch.float8_e4m3fn)}, {}, f"numbers of type F8_E4M3, such as {LAYER}"),
        (
            lambda w: w | {"lm_head.weight": torch.ones(VOCABULARY, 12)},
            {"tie_word_embeddings": True},
            "ties lm_head.weight to the token table, but its files hold other values for it",
        ),
    ],
)  # fmt: skip
def test_weights_that_are_not_those_of_the_configuration(
    tmp_path: Path, edit: Callable[[Weights], Weights], changes: dict[str, Any], says: str
) -> None:
    """transformers would train on with random values, or without some of the file's."""
    saved(tmp_path, edit, **changes)
    with pytest.raises(ConfigError, match=f"^language_model: .*{says}") as error:
        load(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    def spoil(weights: Weights) -> Weights:
        weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
        weights[LAYER][3, 2] = value
        return weights

    saved(tmp_path, spoil)
    with pytest.raises(DataError, match=rf"^language_model: {tmp_path} holds NaN or infinite numbers, in {LAYER}; "):
        load(tmp_path)


@pytest.mark.parametrize(
    ("edit", "changes"),
    [
        (dict, {}),
        (dict, {"tie_word_embeddings": True}),
        (lambda w: w | {"lm_head.weight": w["model.embed_tokens.weight"]}, {"tie_word_embeddings": True}),
        (
            lambda w: {name.replace("model.embed_tokens", "lm_head"): value for name, value in w.items()},
            {"tie_word_embeddings": True},
        ),
        (lambda w: w | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3)}, {}),
        (lambda w: {name.removeprefix("model."): value for name, value in w.items()}, {}),
    ],
    ids=["plain", "tied", "tied, twice in the file", "tied, as the head", "computed buffers", "no prefix"],
)
def test_the_forms_of_whole_checkpoints(
    tmp_path: Path, edit: Callable[[Weights], Weights], changes: dict[str, Any]
) -> None:
    wanted = saved(tmp_path, edit, **changes).state_dict()
    found = load(tmp_path).model.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_values_of_any_precision_are_held_in_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    wanted = saved(tmp_path, lambda weights: {name: value.to(dtype) for name, value in weights.items()}).state_dict()
    for name, value in load(tmp_path).model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, wanted[name].to(dtype).float())


def test_a_file_of_the_index_that_is_not_there(tmp_path: Path) -> None:
    saved(tmp_path).save_pretrained(tmp_path / "cut", max_shard_size="3KB")
    file = sorted((tmp_path / "cut").glob("model-*.safetensors"))[1]
    file.unlink()
    with pytest.raises(ConfigError, match=f"could not be read: .*{file.name}"):
        load(tmp_path / "cut")


def test_quantised_weights(tmp_path: Path) -> None:
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "fp8"}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^language_model.pretrained: the weights of .* are quantised \(fp8\); name"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("written", "listed", "found"),
    [(2, [5, 2], [2, 5]), ([7, 2], 5, [7, 2, 5]), (2, None, 2), (None, 5, 5), (2, 2, 2)],
)
def test_end_tokens_are_those_of_both_files(tmp_path: Path, written: Any, listed: Any, found: Any) -> None:
    """Phi-3.5's configuration names one end token, its generation config three."""
    saved(tmp_path, eos_token_id=written)
    generation = {"eos_token_id": listed, "temperature": 0.6, "do_sample": True}
    (tmp_path / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    assert load(tmp_path).model.config.eos_token_id == found


def test_a_folder_without_a_generation_config(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    assert load(tmp_path).model.config.eos_token_id == EOS


def test_a_model_of_several_parts_is_refused(tmp_path: Path) -> None:
    Gemma3Config().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="gemma3 is a model of several parts, take a causal language model alone"):
        CausalLanguageModel.resolve(CausalLanguageModel.Config(pretrained=str(tmp_path)))


def test_sizes_beside_a_pretrained_model() -> None:
    config = CausalLanguageModel.Config(pretrained="someone/model", model={"num_hidden_layers": 2})
    with pytest.raises(ConfigError, match=re.escape("`pretrained` has sizes of its own; leave `model` out, or write")):
        CausalLanguageModel.resolve(config)


@pytest.mark.parametrize("name", FAMILIES)
def test_embeddings_layers_and_head_are_the_model(name: str) -> None:
    model = CausalLanguageModel(CausalLanguageModel.Config(model=FAMILIES[name]))
    initialized("language_model", model)
    model.check()
    assert model.training
    assert model.dim == model.embed(torch.tensor([[1]])).shape[-1]


@pytest.mark.parametrize("config", [BIDIRECTIONAL["bert"], CONTAMINATED["bert-decoder"]], ids=["bert", "decoder"])
def test_a_head_of_several_layers_is_refused(config: dict[str, Any]) -> None:
    """BERT transforms its hidden states before the head, of which no field speaks."""
    model = CausalLanguageModel(CausalLanguageModel.Config(model=config))
    initialized("language_model", model)
    with pytest.raises(ConfigError, match="bert computes more between embeddings and logits than its layers, its head"):
        model.check()


@pytest.mark.parametrize(
    ("name", "scales"),
    [("falcon_h1", {"embedding_multiplier": 3.0}), ("hyperclovax", {"logits_scaling": 3.0})],
)
@pytest.mark.slow
def test_a_field_of_another_meaning_is_refused(name: str, scales: dict[str, float]) -> None:
    """Falcon-H1 multiplies the embeddings of ids alone, and HyperCLOVA X multiplies where Granite divides."""
    sizes = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8} if name == "falcon_h1" else {}
    for fields in ({}, scales):
        model = CausalLanguageModel(CausalLanguageModel.Config(model={**GROUPED, **sizes, "model_type": name} | fields))
        initialized("language_model", model)
        if fields:
            with pytest.raises(ConfigError, match=f"{name} computes more between embeddings and logits than"):
                model.check()
        else:
            model.check()


def test_loaded_weights_are_float32_and_stay_tied(tmp_path: Path) -> None:
    """They take the places of the model's own, so that main memory never holds two copies."""

    def narrow(weights: Weights) -> Weights:
        return {name: value.bfloat16() for name, value in weights.items()}

    source = saved(tmp_path, narrow, tie_word_embeddings=True)
    model = load(tmp_path).model
    assert model.lm_head.weight is model.get_input_embeddings().weight
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value.bfloat16().float()), name
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_weights_that_are_loaded_later_are_not_drawn(tmp_path: Path) -> None:
    saved(tmp_path)
    language_model = load(tmp_path)
    assert language_model.fills_all_weights
    drawn, both = (nn.ModuleDict({"projector": nn.Linear(3, 3), "language_model": language_model}) for _ in range(2))
    before = {name: value.clone() for name, value in language_model.state_dict().items()}
    initialize(drawn, 0, [language_model])
    assert all(torch.equal(value, before[name]) for name, value in language_model.state_dict().items())
    initialize(both, 0)
    assert not torch.equal(language_model.state_dict()[f"model.{LAYER}"], before[f"model.{LAYER}"])
    assert torch.equal(drawn["projector"].weight, both["projector"].weight)
