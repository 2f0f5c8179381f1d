"""Features for inner layers enter the language model at the image's places: packed, cached, saved, checkpointed."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration as Model
from fvl_lightning.training.distributed.block_transforms import checkpoint_activations
from tests.tiny_models import IMAGE, LLAMA, TOKENS, pixels, rows, tiny_model

DEEP = LLAMA | {"num_hidden_layers": 4, "tie_word_embeddings": False}
FUSIONS: dict[str, Any] = {
    "deepstack": {"name": "deepstack", "layers": [3, 1, 2]},
    "internal": {"name": "internal", "layers": [3, 1, 2]},
}


def deep_model(kind: str = "deepstack", seed: int = 0) -> Model:
    """A model whose further sources enter three inner layers, added or (internal) attended to with an open gate."""
    model = tiny_model(seed, fusion=FUSIONS[kind], llama=DEEP)
    for attention in model.inner_layers.attentions.values():
        torch.nn.init.constant_(attention.gate.weight, 0.5)
    return model


def logits(model: Model, batch: Any, **changes: Any) -> Tensor:
    with torch.no_grad():
        return model(batch.token_ids, batch.images, use_cache=False, **changes).logits


def test_a_block_gets_the_hidden_states_with_its_own_features_added() -> None:
    model, batch = deep_model(), rows(2)
    seen: dict[int, Tensor] = {}
    left: dict[int, Tensor] = {}
    for number, block in enumerate(model.language_model.blocks()):
        forward = block.forward

        def record(hidden: Tensor, *args: Any, number: int = number, forward: Any = forward, **kwargs: Any) -> Any:
            seen[number] = hidden
            result = forward(hidden, *args, **kwargs)
            left[number] = result if isinstance(result, Tensor) else result[0]
            return result

        block.forward = record  # type: ignore[method-assign]
    logits(model, batch)
    with torch.no_grad():
        features = model.embed_images(batch.images).inner_layers
    places = batch.token_ids == IMAGE
    assert sorted(features) == ["1", "2", "3"]
    for number in (1, 2, 3):
        difference = seen[number] - left[number - 1]
        torch.testing.assert_close(difference[places].view(2, TOKENS, -1), features[str(number)], rtol=0, atol=1e-6)
        assert not difference[~places].any(), "only the image's places change"


def test_each_source_enters_the_layer_that_is_named_for_it() -> None:
    """The second source enters block 3, so that a change of it leaves the blocks before as they are."""
    model, batch = deep_model(), rows(1)
    with torch.no_grad():
        sources = model.encoder(batch.images)
        second = list(sources)[1]
        changed = {name: x + (name == second) for name, x in sources.items()}
        one, other = (
            model(batch.token_ids, image_sources=x, output_hidden_states=True, use_cache=False).hidden_states
            for x in (sources, changed)
        )
    assert all(torch.equal(one[k], other[k]) for k in range(4)), "embeddings and the outputs of blocks 0 to 2"
    assert not torch.equal(one[4], other[4])


@pytest.mark.parametrize("kind", FUSIONS)
def test_a_packed_row_gives_the_logits_of_its_samples_alone(kind: str) -> None:
    model, batch = deep_model(kind), rows(3)
    alone = logits(model, batch)
    lengths = [int((row != 0).sum()) for row in batch.token_ids]
    ids = torch.cat([row[:n] for row, n in zip(batch.token_ids, lengths, strict=True)]).unsqueeze(0)
    positions = torch.cat([torch.arange(n) for n in lengths]).unsqueeze(0)
    with torch.no_grad():
        packed = model(ids, batch.images, position_ids=positions, use_cache=False).logits[0]
    for found, row, n in zip(packed.split(lengths), alone, lengths, strict=True):
        torch.testing.assert_close(found, row[:n], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", FUSIONS)
@pytest.mark.parametrize("arguments", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}])
def test_generation_with_a_cache_writes_what_it_writes_without(kind: str, arguments: dict[str, Any]) -> None:
    model, batch = deep_model(kind), rows(3)
    texts = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        texts.append(model.generate(
            batch.token_ids[:, :9], pixel_values=batch.images, max_new_tokens=6, use_cache=use_cache,
            suppress_tokens=[IMAGE], **arguments
        ))  # fmt: skip
    assert torch.equal(*texts)


@pytest.mark.parametrize("kind", FUSIONS)
def test_saved_and_loaded_it_gives_the_same_logits(kind: str, tmp_path: Path) -> None:
    model, batch = deep_model(kind), rows(2)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(Model.from_pretrained(tmp_path).eval(), batch), logits(model, batch))


@pytest.mark.parametrize("kind", FUSIONS)
@pytest.mark.parametrize("how", ["kit", "transformers"])
def test_checkpointed_activations_give_the_same_gradients(how: str, kind: str) -> None:
    def gradients(checkpointed: bool) -> dict[str, Tensor]:
        model, batch = deep_model(kind).train(), rows(2)
        if checkpointed and how == "kit":
            checkpoint_activations(model.language_model.blocks())
        elif checkpointed:
            model.activation_checkpointing_enable()
        model(batch.token_ids, batch.images, labels=batch.labels).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, found = gradients(False), gradients(True)
    assert any(name.startswith("inner_layers.") for name in plain)
    assert plain.keys() == found.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-6)


def test_features_of_one_pass_are_not_seen_by_the_next() -> None:
    model, batch = deep_model(), rows(2)
    text = batch.token_ids.masked_fill(batch.token_ids == IMAGE, 9)
    with torch.no_grad():
        before = model(text, use_cache=False).logits
        logits(model, batch)
        assert torch.equal(model(text, use_cache=False).logits, before)


@pytest.mark.parametrize("kind", FUSIONS)
def test_a_copy_has_features_of_its_own(kind: str) -> None:
    model, batch = deep_model(kind), rows(2)
    expected = logits(model, batch)
    copied = copy.deepcopy(model)
    for parameter in model.inner_layers.parameters():
        parameter.data.zero_()
    assert torch.equal(logits(copied, batch), expected)
    assert not torch.equal(logits(model, batch), expected)


def test_embeddings_in_place_of_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^give input_ids and images: inputs_embeds do not hold the features"):
        deep_model()(inputs_embeds=torch.zeros(1, 3, 12))


def test_a_layer_that_the_language_model_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^fusion: features for block 4 of a language model of 4 blocks, counted"):
        tiny_model(fusion={"name": "deepstack", "layers": [1, 2, 4]}, llama=DEEP)
    with pytest.raises(ConfigError, match=r"^fusion\.layers: 3 sources after the first need 3 different layers, found"):
        tiny_model(fusion={"name": "deepstack", "layers": [1, 1, 2]}, llama=DEEP)


def test_with_closed_gates_inner_layers_change_nothing() -> None:
    batch = rows(2)
    model = tiny_model(fusion={"name": "internal"}, llama=DEEP)
    only_first = tiny_model(fusion={"name": "internal"}, llama=DEEP)
    only_first.inner_layers.attentions.clear()
    with torch.no_grad():
        only_first.inner_layers.project = lambda features: {}  # type: ignore[method-assign]
        assert torch.equal(logits(model, batch), logits(only_first, batch))


def test_rows_without_images_reach_every_parameter() -> None:
    model, batch = deep_model().train(), rows(2)
    text = batch.token_ids.masked_fill(batch.token_ids == IMAGE, 9)
    model(text, pixels(0), labels=batch.labels).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None and "inner_layers" in name] == []
