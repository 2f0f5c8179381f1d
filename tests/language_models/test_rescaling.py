"""Models that rescale logits or embeddings: transformers' own logits and loss, and images that keep their scale."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.language_models.causal import CausalLanguageModel
from fvl_lightning.language_models.rescaling import embedding_multiplier
from fvl_lightning.modeling.loss import token_loss
from fvl_lightning.modeling.packing import check_causal, check_packing
from tests.modeling.architectures import FAMILIES, GROUPED, RESCALED
from tests.tiny_models import initialized, pixels, rows, tiny_model

QUICK = ("gemma2", "granite-scaled")
NAMES = [*RESCALED, "gemma", "gemma3", "nanochat", "afmoe"]
OTHERS: dict[str, dict[str, Any]] = {
    "nanochat": {**GROUPED, "model_type": "nanochat", "final_logit_softcapping": 2.0},
    "afmoe": {
        **GROUPED, "model_type": "afmoe", "mup_enabled": True, "head_dim": 8, "num_dense_layers": 2, "num_experts": 2,
        "moe_intermediate_size": 8, "sliding_window": 4,
    },
}  # fmt: skip
MARKED = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
IDS = torch.randint(4, 30, (2, 7), generator=torch.Generator().manual_seed(1))


def fields(name: str) -> dict[str, Any]:
    return {**FAMILIES, **OTHERS}[name]


def component(name: str) -> CausalLanguageModel:
    """The language model in float64, with its initial values."""
    model = CausalLanguageModel(CausalLanguageModel.Config(model=fields(name)))
    return initialized("language_model", model).double().eval()


def theirs(name: str, ours: CausalLanguageModel) -> Any:
    """transformers' own model with the same weights, which nothing of this kit has touched."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields(name))).double().eval()
    model.load_state_dict(ours.model.state_dict())
    return model


@pytest.mark.parametrize("name", MARKED)
def test_logits_and_loss_are_transformers_own(name: str) -> None:
    ours = component(name)
    wanted = theirs(name, ours)(input_ids=IDS, labels=IDS, use_cache=False)
    hidden = ours(ours.embed(IDS), use_cache=False).last_hidden_state
    torch.testing.assert_close(ours.logits(hidden), wanted.logits, atol=1e-12, rtol=0)
    loss = token_loss(hidden[:, :-1], IDS[:, 1:], ours.logits, ours.model.config.vocab_size)
    torch.testing.assert_close(loss.mean.float(), wanted.loss, atol=1e-6, rtol=0)  # theirs is computed in float32
    plain = ours.model.get_output_embeddings()(hidden)
    changed = float((plain - wanted.logits).detach().abs().max())
    assert (changed > 1e-3) == (name in RESCALED or name == "nanochat")


@pytest.mark.parametrize("name", MARKED)
@torch.no_grad()
def test_image_tokens_enter_the_layers_as_the_projector_made_them(name: str) -> None:
    """Whatever the model does to its embeddings; text enters as it does in transformers' own model."""
    model = tiny_model(llama=fields(name)).double()
    batch, images = rows(2), pixels(2).double()
    ids = batch.token_ids
    made = _output_of(model.projector, lambda: model(ids, pixel_values=images))
    entered = _input_of(model.language_model.blocks()[0], lambda: model(ids, pixel_values=images))
    places = ids == model.config.image_token_id
    tolerance = 1e-12
    if name == "nanochat":  # it normalises what enters its layers, in float32
        made = nn.functional.rms_norm(made, made.shape[-1:], eps=model.language_model.model.config.rms_norm_eps)
        tolerance = 1e-6
    torch.testing.assert_close(entered[places], made.flatten(0, 1), atol=tolerance, rtol=0)
    text = ids.masked_fill(places, 5)
    own = _input_of(model.language_model.blocks()[0], lambda: model.language_model.model(input_ids=text))
    torch.testing.assert_close(entered[~places], own[~places], atol=1e-12, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_packing_is_exact_and_a_cache_changes_nothing(name: str) -> None:
    model = tiny_model(llama=fields(name))
    check_causal(model)
    if name == "afmoe":  # it makes its masks without positions
        with pytest.raises(ConfigError, match="documents in one row see each other in language model afmoe"):
            check_packing(model)
    else:
        check_packing(model)
    batch = rows(1)
    asked = {"input_ids": batch.token_ids[:, :-1], "pixel_values": pixels(1)}
    asked["attention_mask"] = torch.ones_like(asked["input_ids"])
    with_cache, without = (
        model.generate(**asked, max_new_tokens=8, min_new_tokens=8, do_sample=False, use_cache=cache)
        for cache in (True, False)
    )
    assert torch.equal(with_cache, without)


def test_the_multiplier_is_a_field_of_the_configuration() -> None:
    assert embedding_multiplier(AutoConfig.for_model(**RESCALED["granite-scaled"])) == 12.0
    assert embedding_multiplier(AutoConfig.for_model(**RESCALED["gemma2"])) == 1.0
    assert embedding_multiplier(AutoConfig.for_model(**OTHERS["afmoe"])) == 4.0


def _input_of(module: nn.Module, call: Any) -> Tensor:
    caught: list[Tensor] = []
    handle = module.register_forward_pre_hook(
        lambda _, args, kwargs: caught.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    call()
    handle.remove()
    return caught[0]


def _output_of(module: nn.Module, call: Any) -> Tensor:
    caught: list[Tensor] = []
    handle = module.register_forward_hook(lambda _, args, output: caught.append(output))
    call()
    handle.remove()
    return caught[0]
