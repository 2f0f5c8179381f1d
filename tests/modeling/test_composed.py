"""The methods that transformers expects of a model: checkpointing, resizing, placement, attention, outputs."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from fvl_lightning.core.types import IGNORE_INDEX
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration
from tests.tiny_models import LLAMA, VOCABULARY, rows, tiny_model

Model = FlorenceVLForConditionalGeneration
TIED = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


def fresh(tied: bool = True) -> Model:
    """The tiny model, its head tied to its table or not."""
    return tiny_model(llama=LLAMA | {"tie_word_embeddings": tied}, fusion="gated")


def inputs(**more: Any) -> dict[str, Any]:
    """Two rows with an image each."""
    batch = rows(2)
    return {"input_ids": batch.token_ids, "pixel_values": batch.images} | more


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    """[2, S, V]."""
    return model.eval()(**inputs()).logits


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Of one training step over the labels, by name."""
    model.train()
    model.zero_grad()
    model(**inputs(labels=rows(2).labels)).loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor], atol: float = 1e-6) -> None:
    """Same names, same values."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=atol, msg=lambda said, name=name: f"{name}: {said}")


# Activation checkpointing

REENTRANT = pytest.mark.parametrize("words", [None, {"use_reentrant": True}, {"use_reentrant": False}], ids=str)


def counted(model: nn.Module) -> list[str]:
    """Names of the layers that run, filled by every pass; a checkpointed layer runs twice in a step."""
    ran: list[str] = []
    for name, module in model.named_modules():
        if type(module).__name__ in ("LlamaAttention", "BartAttention"):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    return ran


@REENTRANT
def test_checkpointing_gives_the_same_gradients(words: dict[str, bool] | None) -> None:
    model = fresh()
    plain = gradients(model)
    ran = counted(model)
    model.activation_checkpointing_enable(words)
    assert_equal(gradients(model), plain)
    assert {ran.count(name) for name in ran} == {2}, "a layer was not computed again"
    assert {name.split(".")[0] for name in ran} == {"encoder", "language_model"}
    model.activation_checkpointing_disable()
    ran.clear()
    assert_equal(gradients(model), plain)
    assert {ran.count(name) for name in ran} == {1}


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (None, "language_model"),
        ({"use_reentrant": True}, "encoder.text_encoder"),
        *(
            pytest.param(words, place, marks=pytest.mark.slow)
            for words, place in (
                (None, "encoder.text_encoder"),
                ({"use_reentrant": True}, "language_model"),
                ({"use_reentrant": False}, "language_model"),
                ({"use_reentrant": False}, "encoder.text_encoder"),
            )
        ),
    ],
)
def test_checkpointing_reaches_adapters_over_frozen_inputs(words: dict[str, bool] | None, place: str) -> None:
    def wrapped() -> PeftModel:
        torch.manual_seed(0)
        targets = rf"{place.replace('.', '[.]')}[.].*[.](q_proj|v_proj)"
        return get_peft_model(fresh(), LoraConfig(r=2, target_modules=targets, init_lora_weights=False))

    plain = gradients(wrapped())
    assert plain
    assert all("lora_" in name for name in plain)
    model = wrapped()
    model.get_base_model().activation_checkpointing_enable(words)
    assert_equal(gradients(model), plain)


def test_a_cache_that_checkpointing_would_drop_is_refused() -> None:
    model = fresh()
    wanted = model.generate(**inputs(), max_new_tokens=4, do_sample=False)
    model.train().activation_checkpointing_enable()
    with pytest.raises(ValueError, match=r"the layers would drop the cache.*; call model.eval\(\) first"):
        model.generate(**inputs(), max_new_tokens=4, do_sample=False)
    assert torch.equal(model.generate(**inputs(), max_new_tokens=4, do_sample=False, use_cache=False), wanted)
    assert torch.equal(model.eval().generate(**inputs(), max_new_tokens=4, do_sample=False), wanted)


# The table of tokens

SIZES = [(VOCABULARY + 7, None, VOCABULARY + 7), (VOCABULARY - 6, None, VOCABULARY - 6), (None, 64, 64), (41, 8, 48)]


@TIED
@pytest.mark.parametrize(("size", "multiple", "wanted"), SIZES, ids=["grow", "shrink", "pad", "grow and pad"])
def test_a_resized_table_keeps_its_words_and_is_loaded_again(
    tied: bool, size: int | None, multiple: int | None, wanted: int, tmp_path: Path
) -> None:
    model = fresh(tied)
    kept = min(wanted, VOCABULARY)
    words = inputs()
    words["input_ids"] %= VOCABULARY - 6  # the words that a smaller table has, too
    with torch.no_grad():
        before = model(**words).logits[..., :kept]
        table = model.resize_token_embeddings(size, pad_to_multiple_of=multiple)
        after = model(**words).logits
    assert table is model.get_input_embeddings()
    assert after.shape[-1] == wanted == table.num_embeddings == model.get_output_embeddings().out_features
    torch.testing.assert_close(after[..., :kept], before, rtol=0, atol=1e-5)
    assert (model.get_output_embeddings().weight is table.weight) is tied
    assert model.config.vocab_size == model.config.get_text_config().vocab_size == wanted
    model.save_pretrained(tmp_path)
    again = Model.from_pretrained(tmp_path)
    assert again.config.vocab_size == wanted
    with torch.no_grad():
        torch.testing.assert_close(again(**words).logits, after, rtol=0, atol=0)
        words["input_ids"][:, -1] = wanted - 1
        assert again(**words, labels=words["input_ids"]).loss.isfinite()


@TIED
def test_new_rows_are_those_that_the_language_model_would_begin_with(tied: bool) -> None:
    model = fresh(tied)
    model.resize_token_embeddings(VOCABULARY + 4000, mean_resizing=False)
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert abs(float(table.weight[VOCABULARY:].detach().std()) - LLAMA["initializer_range"]) < 0.01


def test_tables_can_be_replaced() -> None:
    model = fresh(tied=False)
    table, head = nn.Embedding(50, model.language_model.dim), nn.Linear(model.language_model.dim, 50, bias=False)
    model.set_input_embeddings(table)
    model.set_output_embeddings(head)
    assert (model.get_input_embeddings(), model.get_output_embeddings()) == (table, head)
    assert logits(model).shape[-1] == 50


@TIED
def test_an_adapter_over_a_resized_table_brings_the_table(tied: bool, tmp_path: Path) -> None:
    fresh(tied).save_pretrained(tmp_path / "base")

    def grown() -> Model:
        model = Model.from_pretrained(tmp_path / "base")
        model.resize_token_embeddings(VOCABULARY + 3)
        return model

    targets = r"language_model\..*\.q_proj"
    model = get_peft_model(grown(), LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    model.get_base_model().get_input_embeddings().weight.data[VOCABULARY:] = 0.5
    with pytest.warns(UserWarning, match="has been resized during finetuning"):
        model.save_pretrained(tmp_path / "adapter")
    expected = logits(model)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(grown(), tmp_path / "adapter")), expected)


# Where weights lie, and as what


@pytest.mark.parametrize(
    ("tied", "memory"),
    [
        (True, "45KB"),
        pytest.param(True, "0KB", marks=pytest.mark.slow),
        pytest.param(False, "70KB", marks=pytest.mark.slow),
    ],
)
def test_weights_on_disk_give_the_same_logits(tied: bool, memory: str, tmp_path: Path) -> None:
    model = fresh(tied)
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    assert len(list((tmp_path / "model").glob("model-*.safetensors"))) > 2
    words = {"device_map": "auto", "max_memory": {"cpu": memory}, "offload_folder": str(tmp_path / "offload")}
    offloaded = Model.from_pretrained(tmp_path / "model", **words)
    assert "disk" in offloaded.hf_device_map.values()
    torch.testing.assert_close(logits(offloaded), logits(model), rtol=0, atol=1e-6)


def test_placement_keeps_blocks_and_caches_whole() -> None:
    model = fresh()
    kinds = {type(block).__name__ for block in [*model.encoder.blocks(), *model.language_model.blocks()]}
    assert kinds <= model._no_split_modules
    assert "past_key_values" in model._skip_keys_device_placement
    for module in model.modules():
        alone = next(module.parameters(recurse=False), None) is None or not list(module.children())
        assert alone or type(module).__name__ in model._no_split_modules, "its parameters could be placed one by one"


@pytest.mark.parametrize(
    ("tied", "word"), [(True, "dtype"), pytest.param(False, "torch_dtype", marks=pytest.mark.slow)]
)
def test_another_number_type(tied: bool, word: str, tmp_path: Path) -> None:
    fresh(tied).save_pretrained(tmp_path)
    model = Model.from_pretrained(tmp_path, **{word: torch.bfloat16})
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is tied
    batch = inputs(pixel_values=rows(2).images.bfloat16())
    found = model(**batch).logits
    assert found.dtype == torch.bfloat16
    wanted = logits(fresh(tied))
    assert float((found.float() - wanted).detach().norm() / wanted.norm()) < 0.05
    model.save_pretrained(tmp_path / "again")
    again = Model.from_pretrained(tmp_path / "again")
    assert again.dtype == torch.bfloat16
    assert torch.equal(again(**batch).logits, found)


# Attention and recorded outputs


def implementations(model: Model) -> set[str]:
    """Of every transformers model inside, and of the configurations that generation reads."""
    found = {part.config._attn_implementation for part in model.modules() if isinstance(part, PreTrainedModel)}
    return found | {model.config.get_text_config()._attn_implementation}


def test_the_attention_asked_for_reaches_every_part(tmp_path: Path) -> None:
    model = fresh()
    assert implementations(model) == {"sdpa"}
    model.save_pretrained(tmp_path)
    eager = Model.from_pretrained(tmp_path, attn_implementation="eager")
    assert implementations(eager) == {"eager"}
    torch.testing.assert_close(logits(eager), logits(model), rtol=0, atol=1e-5)
    eager.set_attn_implementation("sdpa")
    assert implementations(eager) == {"sdpa"}
    model.set_attn_implementation("eager")
    assert implementations(model) == {"eager"}
    for part in (Model.from_pretrained(tmp_path, attn_implementation={"text_config": "eager"}), eager):
        part.set_attn_implementation({"text_config": "eager"})
        assert part.language_model.model.config._attn_implementation == "eager"
        assert part.encoder.text_encoder.config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match=r"does not support Flash Attention"):
        Model.from_pretrained(tmp_path, attn_implementation="flash_attention_2")


@pytest.mark.parametrize("labels", [False, True])
def test_hidden_states_and_attentions_are_the_language_models(labels: bool) -> None:
    model = fresh()
    model.set_attn_implementation("eager")
    batch = inputs(labels=rows(2).labels) if labels else inputs()
    output = model(**batch, output_attentions=True, output_hidden_states=True)
    length = batch["input_ids"].shape[1]
    assert [tuple(states.shape) for states in output.hidden_states] == [(2, length, 12)] * 3
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 2, length, length)] * 2
    torch.testing.assert_close(output.attentions[1].sum(-1), torch.ones(2, 2, length), rtol=0, atol=1e-5)
    torch.testing.assert_close(model.language_model.logits(output.hidden_states[-1]), output.logits)
    plain = model(**batch)
    assert plain.attentions is None
    assert plain.hidden_states is None
    model.config.output_hidden_states = True
    assert model(**batch).hidden_states is not None
    assert model(**batch, output_hidden_states=False).hidden_states is None


def test_generation_records_them(tmp_path: Path) -> None:
    model = fresh()
    model.set_attn_implementation("eager")
    words = {"max_new_tokens": 3, "return_dict_in_generate": True, "output_logits": True}
    found = model.generate(**inputs(), **words, output_attentions=True, output_hidden_states=True)
    assert len(found.attentions) == len(found.hidden_states) == 3
    assert found.attentions[0][0].shape == (2, 2, 14, 14)
    assert found.attentions[2][0].shape == (2, 2, 1, 16)
    assert found.hidden_states[0][0].shape == (2, 14, 12)
    assert torch.equal(found.sequences, model.generate(**inputs(), max_new_tokens=3))


def test_attentions_that_cannot_be_had_are_one_sentence() -> None:
    with pytest.raises(ValueError, match="output_attentions needs attn_implementation='eager', the language model's"):
        fresh()(**inputs(), output_attentions=True)


def test_a_tuple_where_it_is_asked_for() -> None:
    model = fresh()
    loss, found, *_ = model(**inputs(labels=rows(2).labels), return_dict=False)
    assert loss.ndim == 0
    torch.testing.assert_close(found, logits(model), rtol=0, atol=1e-6)
    assert torch.equal(model(**inputs(), return_dict=False)[0], model(**inputs()).logits)


def test_a_keyword_that_nobody_would_use_is_refused() -> None:
    with pytest.raises(TypeError, match=r"forward\(\) has no use for attention_masks, pixels"):
        fresh()(**inputs(), pixels=torch.zeros(1), attention_masks=torch.ones(1), token_type_ids=None)


@pytest.mark.parametrize("keep", [3, torch.tensor([4, 7])], ids=["last", "places"])
def test_logits_of_some_positions(keep: int | Tensor) -> None:
    whole = logits(fresh())
    found = fresh()(**inputs(), logits_to_keep=keep).logits
    torch.testing.assert_close(found, whole[:, -3:] if isinstance(keep, int) else whole[:, keep], rtol=0, atol=1e-6)


def test_the_base_model_gives_hidden_states_and_no_logits() -> None:
    model = fresh()
    asked: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda *_: asked.append(1))
    output = model.base_model(**inputs(), use_cache=False)
    assert not asked
    torch.testing.assert_close(model.get_output_embeddings()(output.last_hidden_state), logits(model))
    assert model.get_decoder() is model.language_model
    assert model.get_encoder() is model.encoder


def test_embeddings_in_place_of_ids() -> None:
    model = fresh()
    batch = inputs(input_ids=rows(2).token_ids[:, -6:], pixel_values=None)
    table = model.get_input_embeddings()(batch["input_ids"]).detach()
    torch.testing.assert_close(model(inputs_embeds=table).logits, model(**batch).logits, rtol=0, atol=1e-6)
    written = model.generate(inputs_embeds=table, max_new_tokens=4)
    assert torch.equal(written, model.generate(**batch, max_new_tokens=4)[:, 6:])
    for wrong in ({"inputs_embeds": table} | batch, {"inputs_embeds": table, "pixel_values": rows(2).images}, {}):
        with pytest.raises(ValueError, match="give input_ids and their images, or inputs_embeds"):
            model(**wrong)


def test_logits_come_beside_a_loss_in_eval_mode_or_when_asked() -> None:
    model, batch = fresh(), inputs(labels=rows(2).labels)
    assert model.eval()(**batch).logits.shape == (2, 14, VOCABULARY)
    assert model.eval()(**batch, return_logits=False).logits is None
    assert model.train()(**batch).logits is None
    found = copy.deepcopy(model)(**batch, return_logits=True)
    assert found.logits.shape == (2, 14, VOCABULARY)
    targets = batch["labels"][:, 1:].flatten()
    wanted = nn.functional.cross_entropy(found.logits[:, :-1].flatten(0, 1), targets, ignore_index=IGNORE_INDEX)
    torch.testing.assert_close(found.loss, wanted, rtol=0, atol=1e-5)
