"""peft on the model: the layers of `all-linear`, and tied weights."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from fvl_lightning.modeling.configuration import FlorenceVLConfig
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration
from tests.modeling.test_model import COMPRESSING
from tests.tiny_models import BOS, IMAGE, LLAMA, model_config, pixels, rows, tiny_model

HEAD = "language_model.model.lm_head"


def fresh(tied: bool = True) -> FlorenceVLForConditionalGeneration:
    """The tiny model, its head tied to its table or not."""
    return tiny_model(llama=LLAMA | {"tie_word_embeddings": tied})


def logits(model: nn.Module) -> Tensor:
    """[2, S, V] of two rows with an image each."""
    batch = rows(2)
    with torch.no_grad():
        return model.eval()(input_ids=batch.token_ids, pixel_values=batch.images).logits


def learn(model: nn.Module) -> None:
    """Moves everything that learns to seeded other values."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


def adapted(model: nn.Module, **settings: Any) -> PeftModel:
    """A model under peft with an adapter that is no longer zero; peft's warnings are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        wrapped = get_peft_model(model, LoraConfig(r=2, **settings))
    learn(wrapped)
    return wrapped


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("dora", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["lora", "dora"])
def test_all_linear_leaves_the_head_out_and_merges_to_the_same_logits(tied: bool, dora: bool) -> None:
    model = adapted(fresh(tied), target_modules="all-linear", use_dora=dora)
    names = {name for name, _ in model.named_parameters() if "lora_A" in name}
    assert names
    assert not [name for name in names if HEAD in name]
    expected = logits(model)
    assert float((expected - logits(fresh(tied))).abs().max()) > 0.1
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-5)
    assert (merged.get_output_embeddings().weight is merged.get_input_embeddings().weight) is tied


@pytest.mark.parametrize("part", ["lm_head", "embed_tokens"])
def test_a_tied_head_trained_in_full_stays_tied_where_peft_is_asked_for_it(part: str, tmp_path: Path) -> None:
    name = f"language_model.model.{part if part == 'lm_head' else 'model.embed_tokens'}"
    model = adapted(fresh(), target_modules=["q_proj"], modules_to_save=[name], ensure_weight_tying=True)
    expected = logits(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(fresh(), str(tmp_path))), expected)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-5)
    assert merged.get_output_embeddings().weight is merged.get_input_embeddings().weight


def test_an_adapter_on_a_tied_head_is_no_longer_silent() -> None:
    """It would change the table of tokens too when it is merged; peft finds that out by what the model says is tied."""
    settings = LoraConfig(r=2, target_modules=["lm_head"])
    with pytest.warns(UserWarning, match="a tied layer is part of the adapter"):
        model = get_peft_model(fresh(), settings)
    with pytest.warns(UserWarning, match="tied_target_modules="):
        model.merge_and_unload()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*(is_gradient_checkpointing|save_embedding_layers).*")
        get_peft_model(fresh(tied=False), LoraConfig(r=2, target_modules=["lm_head"])).merge_and_unload()


def test_text_config_alone_says_whether_the_head_is_tied() -> None:
    config = model_config()
    assert config.tie_word_embeddings is True
    assert config.to_dict()["tie_word_embeddings"] is True
    assert "tie_word_embeddings" not in config.to_diff_dict()
    config.tie_word_embeddings = False
    assert config.get_text_config().tie_word_embeddings is False
    assert FlorenceVLConfig.from_dict(model_config().to_dict()).tie_word_embeddings is True
    assert FlorenceVLConfig.from_dict(model_config().to_dict(), tie_word_embeddings=False).tie_word_embeddings is False


def test_names_that_end_like_others_are_said_and_a_list_that_is_exact_is_offered() -> None:
    """Only what a training names learns; `projector` alone would be the encoder's image_projector too."""
    says = r"ends with .projector., so that encoder\.image_projector is trained too; .*modules_to_save\(.projector.\)$"
    targets = r"language_model\..*\.q_proj"
    with pytest.warns(UserWarning, match=says):
        get_peft_model(fresh(), LoraConfig(r=2, target_modules=targets, modules_to_save=["fusion", "projector"]))
    with pytest.warns(UserWarning, match=says):
        fresh().add_adapter(LoraConfig(r=2, target_modules=targets, modules_to_save=["projector"]))
    gated = tiny_model(fusion="gated")
    model = adapted(gated, target_modules=targets, modules_to_save=gated.modules_to_save("fusion", "projector"))
    learning = {name for name, parameter in model.get_base_model().named_parameters() if parameter.requires_grad}
    assert {name for name in learning if "lora_" in name} == {
        f"language_model.model.model.layers.{layer}.self_attn.q_proj.lora_{side}.default.weight"
        for layer in range(2) for side in "AB"
    }  # fmt: skip
    full = {name.replace("modules_to_save.default.", "") for name in learning if "lora_" not in name}
    whole = dict(tiny_model(fusion="gated").named_parameters())
    assert full == {name for name in whole if name.split(".")[0] in ("fusion", "projector")}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPRESSING)
def test_a_projector_is_trained_in_full_beside_an_adapter(name: str) -> None:
    fields, tokens = COMPRESSING[name]
    model = tiny_model(projector={"name": name, **fields}, sources=["davit_stage_1", "davit"])
    count = len(list(model.projector.parameters()))
    ids = torch.tensor([[BOS, *[IMAGE] * tokens, 7, 8]])
    saved = model.modules_to_save("projector")
    wrapped = get_peft_model(model, LoraConfig(target_modules=r".*language_model.*q_proj", modules_to_save=saved))
    wrapped(input_ids=ids, pixel_values=pixels(1), labels=ids).loss.backward()
    learnt = [key for key, p in wrapped.named_parameters() if p.grad is not None and "lora" not in key]
    assert len(learnt) == count
    assert all("projector" in key for key in learnt)
