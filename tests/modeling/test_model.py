"""The whole model: inputs and outputs, saving and loading, generation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

import fvl_lightning.modeling.florence_vl  # noqa: F401 - registers the model with transformers
from fvl_lightning.core import registry
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.types import IGNORE_INDEX, FeatureSpec, ImageSpec
from fvl_lightning.modeling.configuration import FlorenceVLConfig
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration
from fvl_lightning.modeling.shapes import check_declarations, check_sources
from tests.tiny_models import (
    BOS,
    IMAGE,
    LLAMA,
    PAD,
    TOKENS,
    VOCABULARY,
    model_config,
    named_tensors,
    pixels,
    rows,
    tiny_model,
)

FLOAT64 = 1e-10


def logits_of(model: FlorenceVLForConditionalGeneration, count: int = 2, **changes: Any) -> Tensor:
    batch = rows(count)
    inputs = {"input_ids": batch.token_ids, "pixel_values": batch.images} | changes
    with torch.no_grad():
        return model(**inputs).logits


# Forward.


DEEP = LLAMA | {"num_hidden_layers": 4}
"""Has a block for each of the three further sources of a fusion with inner layers."""


@pytest.mark.parametrize("fusion", registry.names("fusion"))
def test_every_fusion_reaches_the_logits(fusion: str) -> None:
    """Token ids of as many placeholders as the model says give logits, and each image matters to its own row."""
    model = tiny_model(fusion=fusion, normalize=True, llama=DEEP)
    spec = model.image_spec
    tokens = spec.tokens_per_image
    assert spec == ImageSpec(16, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 4 * TOKENS if tokens > 4 else TOKENS)
    ids = torch.tensor([[BOS, *[IMAGE] * tokens, 7, 8]] * 2)
    images = pixels(2)
    asked = {"question_ids": torch.tensor([[7], [9]])} if model.conditioned else {}
    logits = logits_of(model, input_ids=ids, pixel_values=images, **asked)
    assert tuple(logits.shape) == (2, tokens + 3, VOCABULARY)
    images[1] = pixels(1, seed=9)[0]
    changed = logits_of(model, input_ids=ids, pixel_values=images, **asked)
    torch.testing.assert_close(changed[0], logits[0], atol=1e-5, rtol=0)
    assert float((changed[1] - logits[1]).abs().max()) > 1e-3


COMPRESSING: dict[str, tuple[dict[str, Any], int]] = {
    "pixel_shuffle": ({}, 4),
    "pool": ({"by": "attention", "heads": 2}, 4),
    "resampler": ({"queries": 3, "depth": 1, "heads": 2}, 3),
    "c_abstractor": ({"rows": 3, "depth": 1}, 9),
    "per_source": ({"projectors": {"default": {"name": "pool", "factor": 4}}}, 1),
}
"""{projector: (its fields, the tokens that it makes of a map of 4 x 4)}."""


@pytest.mark.parametrize("name", COMPRESSING)
def test_fewer_image_tokens_are_packed_cached_and_saved(name: str, tmp_path: Path) -> None:
    """Documents of a packed row see themselves alone, a cache changes nothing, and a folder gives the same bits."""
    fields, tokens = COMPRESSING[name]
    model = tiny_model(projector={"name": name, **fields}, sources=["davit_stage_1", "davit"], normalize=True)
    assert (model.image_spec.tokens_per_image, model.fusion.output.tokens) == (tokens, 16)
    one, other, images = [BOS, *[IMAGE] * tokens, 7, 8, 9], [BOS, 5, *[IMAGE] * tokens, 6], pixels(2)
    alone = [logits_of(model, input_ids=torch.tensor([ids]), pixel_values=x[None])
             for ids, x in zip((one, other), images, strict=True)]  # fmt: skip
    packed = {"input_ids": torch.tensor([one + other]), "pixel_values": images}
    packed["position_ids"] = torch.tensor([[*range(len(one)), *range(len(other))]])
    torch.testing.assert_close(logits_of(model, **packed), torch.cat(alone, dim=1), atol=1e-5, rtol=0)
    with torch.no_grad():
        first = model(torch.tensor([one[:-1]]), pixel_values=images[:1], use_cache=True)
        last = model(torch.tensor([one[-1:]]), past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(last.logits[:, -1], alone[0][:, -1], atol=1e-5, rtol=0)
    model.save_pretrained(tmp_path)
    again = FlorenceVLForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert torch.equal(logits_of(again, **packed), logits_of(model, **packed))
    assert not [key for key, tensor in again.projector.state_dict().items() if tensor.is_meta]


def test_the_loss_is_that_of_the_next_token() -> None:
    model, batch = tiny_model(), rows(3)
    output = model.train()(batch.token_ids, pixel_values=batch.images, labels=batch.labels)
    targets = batch.labels[:, 1:].flatten()
    wanted = torch.nn.functional.cross_entropy(
        logits_of(model, 3)[:, :-1].flatten(0, 1), targets, ignore_index=IGNORE_INDEX, reduction="sum"
    )
    supervised = int((targets != IGNORE_INDEX).sum())
    assert output.logits is None, "logits that nobody needs take the most memory of a step"
    assert int(output.tokens) == supervised
    torch.testing.assert_close(output.loss_sum.detach(), wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(output.loss.detach(), wanted / supervised, atol=1e-5, rtol=0)


def test_features_in_place_of_images() -> None:
    """The encoder's sources, computed before, give the same bits and do not run it again."""
    model, batch = tiny_model(fusion="gated"), rows(2)
    with torch.no_grad():
        sources = model.encoder(batch.images)
        model.encoder.forward = None
        again = model(batch.token_ids, image_sources=sources).logits
    assert torch.equal(again, logits_of(tiny_model(fusion="gated")))


def test_diagnostics_come_with_the_output() -> None:
    batch = rows(2)
    with torch.no_grad():
        output = tiny_model(fusion="gated")(batch.token_ids, pixel_values=batch.images)
    sources = ("davit", "caption", "ocr", "grounding")
    assert list(output.diagnostics) == [f"{kind}/{source}" for kind in ("mass", "map") for source in sources]
    assert float(sum(output.diagnostics[f"mass/{source}"] for source in sources)) == pytest.approx(1, abs=1e-5)


def test_several_images_in_a_row() -> None:
    """Two images in one row and one in the next; the order is that of the placeholders."""
    model, images = tiny_model().double(), pixels(3).double()
    place = [IMAGE] * TOKENS
    two, one = [BOS, *place, 7, *place, 8, 9], [BOS, 7, 8, *place, 9, 5, *[PAD] * 3]
    batch = logits_of(model, input_ids=torch.tensor([two, one]), pixel_values=images)
    first = logits_of(model, input_ids=torch.tensor([two]), pixel_values=images[:2])
    second = logits_of(model, input_ids=torch.tensor([one]), pixel_values=images[2:])
    torch.testing.assert_close(batch, torch.cat([first, second]), atol=FLOAT64, rtol=0)
    swapped = logits_of(model, input_ids=torch.tensor([two]), pixel_values=images[[1, 0]])
    assert float((swapped - first).abs().max()) > 1e-3


def test_rows_without_images() -> None:
    model = tiny_model()
    ids = torch.tensor([[BOS, 5, 6, 7]])
    assert torch.isfinite(logits_of(model, input_ids=ids, pixel_values=None)).all()


@pytest.mark.parametrize("fusion", registry.names("fusion"))
@pytest.mark.parametrize("encoded", [False, True])
def test_a_batch_without_images_has_a_part_in_every_gradient(fusion: str, encoded: bool) -> None:
    """As text of a mixture makes them; were a rank to leave a parameter out, the others would wait for it for ever."""
    model = tiny_model(fusion=fusion, llama=DEEP).train()
    ids = torch.tensor([[BOS, 5, 6, 7]])
    none = pixels(0)
    given = {"image_sources": {name: x[:0] for name, x in model.encoder(pixels(1)).items()}} if encoded else {}
    output = model(ids, labels=ids, **given or {"pixel_values": none})
    torch.testing.assert_close(output.loss, model(ids, labels=ids).loss, rtol=0, atol=0)
    assert output.diagnostics == {}
    output.loss.backward()
    for name, parameter in model.named_parameters():
        if encoded and name.startswith("encoder."):
            continue
        assert parameter.grad is not None, name
        if not name.startswith("language_model."):
            assert not parameter.grad.any(), name
    one, other = (logits_of(model, input_ids=ids, pixel_values=images) for images in (none, None))
    assert torch.equal(one, other)
    with pytest.raises(ValueError, match="4 image placeholders in the batch, but 0 images"):
        logits_of(model, input_ids=torch.tensor([[BOS, *[IMAGE] * 4]]), pixel_values=none)


@pytest.mark.parametrize("images", [1, 3])
def test_images_that_do_not_match_the_placeholders(images: int) -> None:
    with pytest.raises(ValueError, match=rf"8 image placeholders in the batch, but {images} images of 4 tokens"):
        logits_of(tiny_model(), pixel_values=pixels(images))


def test_neither_images_nor_their_features() -> None:
    with pytest.raises(ValueError, match=r"^give pixel_values, or image_sources, "):
        tiny_model().embed_images()


def test_placeholders_without_images() -> None:
    """Training on the embedding of something else in their place would be a wrong model in silence."""
    model, batch = tiny_model(), rows(2)
    with pytest.raises(ValueError, match="8 image placeholders in the batch, but no images"):
        model(batch.token_ids, labels=batch.labels)
    with pytest.raises(ValueError, match="8 image placeholders in the batch, but no images"):
        logits_of(model, pixel_values=None)
    with pytest.raises(ValueError, match="8 image placeholders in the batch, but no images"):
        model.generate(batch.token_ids, max_new_tokens=2, do_sample=False)


def test_a_placeholder_beyond_the_vocabulary() -> None:
    """A model whose table was not grown for the placeholder: the same numbers as with one inside of it."""
    inside, beyond = tiny_model(), tiny_model(image_token_id=VOCABULARY + 5)
    batch = rows(2)
    ids = batch.token_ids.masked_fill(batch.token_ids == IMAGE, VOCABULARY + 5)
    assert torch.equal(logits_of(beyond, input_ids=ids), logits_of(inside))
    generated = beyond.generate(ids[:1, :8], pixel_values=batch.images[:1], max_new_tokens=3, do_sample=False)
    assert int(generated[0, 8:].max()) < VOCABULARY


@pytest.mark.parametrize("kept", [1, 3])
def test_logits_to_keep(kept: int) -> None:
    model = tiny_model()
    torch.testing.assert_close(logits_of(model, logits_to_keep=kept), logits_of(model)[:, -kept:], atol=1e-6, rtol=0)


def test_pads_on_the_right_change_nothing() -> None:
    """Training passes no attention mask: pads stand behind everything that is read."""
    model, batch = tiny_model().double(), rows(1, length=12)
    ids = torch.cat([batch.token_ids, torch.full((1, 4), PAD)], dim=1)
    images = batch.images.double()
    plain = logits_of(model, input_ids=batch.token_ids, pixel_values=images)
    padded = logits_of(model, input_ids=ids, pixel_values=images)
    torch.testing.assert_close(padded[:, :12], plain, atol=FLOAT64, rtol=0)


# Building and saving.


def test_builds_without_memory() -> None:
    with torch.device("meta"):
        model = FlorenceVLForConditionalGeneration(model_config(fusion="attention", normalize=True))
    assert not [name for name, tensor in named_tensors(model) if not tensor.is_meta]
    assert model.image_spec.tokens_per_image == TOKENS


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("fusion", ["concat", "attention"])
def test_a_saved_model_is_the_same_model(fusion: str, tied: bool, tmp_path: Path) -> None:
    """A fresh object from the folder alone gives the same bits, and what was tied is tied."""
    model = tiny_model(
        seed=4,
        fusion={"name": fusion, **({"heads": 2} if fusion == "attention" else {})},
        llama={**LLAMA, "tie_word_embeddings": tied},
        normalize=True,
        temporal_embedding=False,
        sources=["davit_stage_1", "davit", "ocr"],
    )
    model.save_pretrained(tmp_path)
    again = FlorenceVLForConditionalGeneration.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[BOS, *[IMAGE] * model.image_spec.tokens_per_image, 7, 8]] * 2)
    inputs = {"input_ids": ids, "pixel_values": pixels(2)}
    assert torch.equal(logits_of(again, **inputs), logits_of(model, **inputs))
    found = dict(named_tensors(again))
    assert found.keys() == dict(named_tensors(model)).keys()
    for name, tensor in named_tensors(model):
        assert torch.equal(tensor, found[name]), name
    language_model = again.language_model.model
    assert (language_model.lm_head.weight is language_model.model.embed_tokens.weight) is tied
    assert again.config.fusion == model.config.fusion
    assert again.encoder.config == model.encoder.config


def test_transformers_auto_class_finds_it(tmp_path: Path) -> None:
    model = tiny_model(seed=4)
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), FlorenceVLConfig)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert isinstance(again, FlorenceVLForConditionalGeneration)
    assert torch.equal(logits_of(again), logits_of(model))


def test_a_missing_weight_is_initialised(tmp_path: Path) -> None:
    """A checkpoint of another fusion: what it has not is set by the model's own rule, nothing is left as garbage."""
    tiny_model(fusion="concat").save_pretrained(tmp_path)
    config = model_config(fusion="gated", normalize=True)
    model = FlorenceVLForConditionalGeneration.from_pretrained(tmp_path, config=config, ignore_mismatched_sizes=True)
    assert all(bool(tensor.isfinite().all()) for _, tensor in named_tensors(model))
    assert float(model.fusion.gates.weight.detach().abs().max()) <= 64**-0.5, "nn.Linear's own range"
    assert model.fusion.gates.weight.unique().numel() > 100
    assert model.output_norm.weight.tolist() == [1] * 16
    assert model.output_norm.bias.tolist() == [0] * 16


def test_a_head_stays_with_its_table_when_the_table_moves() -> None:
    model = tiny_model()
    assert model.get_input_embeddings() is model.language_model.model.model.embed_tokens
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(1)
    assert torch.equal(model.language_model.model.lm_head.weight, model.get_input_embeddings().weight)


# Generation.


def diverse_model() -> FlorenceVLForConditionalGeneration:
    """In float64, and with layers strong enough not to repeat the last word for ever."""
    model = tiny_model(fusion="gated", llama={**LLAMA, "tie_word_embeddings": False}).double()
    with torch.no_grad():
        for layer in model.language_model.model.model.layers:
            for parameter in layer.parameters():
                parameter.mul_(4)
    return model


def prompts() -> tuple[list[list[int]], Tensor]:
    """Three prompts of three lengths, one with two images; their images in order."""
    place = [IMAGE] * TOKENS
    return [[BOS, *place, 7, 8], [BOS, *place, 9, 10, 11, *place, 5], [BOS, 6, *place]], pixels(4).double()


def left_padded(texts: list[list[int]]) -> tuple[Tensor, Tensor]:
    longest = max(map(len, texts))
    ids = torch.tensor([[PAD] * (longest - len(text)) + text for text in texts])
    mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in texts])
    return ids, mask


def generate(model: FlorenceVLForConditionalGeneration, texts: list[list[int]], images: Tensor, **how: Any) -> Tensor:
    ids, mask = left_padded(texts)
    fields = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": PAD} | how
    written = model.generate(ids, attention_mask=mask, pixel_values=images, **fields)
    assert torch.equal(written[:, : ids.shape[1]], ids)
    return written[:, ids.shape[1] :]


def test_generation_with_a_cache_is_generation_without() -> None:
    model, (texts, images) = diverse_model(), prompts()
    cached = generate(model, texts, images)
    assert cached.unique().numel() > 4, "a model that repeats one word shows nothing"
    assert torch.equal(cached, generate(model, texts, images, use_cache=False))


def test_generation_is_the_argmax_of_the_logits() -> None:
    model, (texts, images) = diverse_model(), prompts()
    written = generate(model, texts[:1], images[:1])
    ids = torch.cat([torch.tensor(texts[:1]), written], dim=1)
    logits = logits_of(model, input_ids=ids, pixel_values=images[:1])
    assert torch.equal(logits[:, len(texts[0]) - 1 : -1].argmax(-1), written)


def test_a_left_padded_batch_is_its_rows_one_by_one() -> None:
    model, (texts, images) = diverse_model(), prompts()
    together = generate(model, texts, images)
    for row, shown in enumerate([images[:1], images[1:3], images[3:]]):
        assert torch.equal(generate(model, texts[row : row + 1], shown)[0], together[row]), row
    assert len({tuple(row.tolist()) for row in together}) == 3


def test_the_encoder_runs_once_per_generation() -> None:
    model, (texts, images) = diverse_model(), prompts()
    calls: list[int] = []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    generate(model, texts, images)
    assert calls == [1]


def test_generation_from_features() -> None:
    model, (texts, images) = diverse_model(), prompts()
    with torch.no_grad():
        sources = model.encoder(images)
    ids, mask = left_padded(texts)
    written = model.generate(
        ids, attention_mask=mask, image_sources=sources, max_new_tokens=8, do_sample=False, eos_token_id=None
    )
    assert torch.equal(written[:, ids.shape[1] :], generate(model, texts, images))


def test_the_image_matters_to_what_is_written() -> None:
    model, (texts, images) = diverse_model(), prompts()
    assert not torch.equal(generate(model, texts, images), generate(model, texts, 3 * images.flip(0)))


def test_sampling_follows_the_seed() -> None:
    model, (texts, images) = diverse_model(), prompts()
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(generate(model, texts, images, do_sample=True, temperature=5.0))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


DECLARED = FeatureSpec(TOKENS, 99, None)


@pytest.mark.parametrize(
    ("component", "field", "value", "said"),
    [
        ("fusion", "output", DECLARED, r"fusion concat declares width 99 but returned \[2, 4, \d+\]; expected"),
        ("projector", "tokens", 7, r"projector mlp declares 7 tokens but returned \[2, 4, 12\]"),
        ("encoder", "specs", {"davit": DECLARED}, r"encoder florence2 \(source davit\) declares width 99 but returned"),
    ],
)
def test_a_component_that_returns_another_shape_is_named_once(
    component: str, field: str, value: Any, said: str
) -> None:
    model = tiny_model()
    right = getattr(getattr(model, component), field)
    setattr(getattr(model, component), field, value)
    with pytest.raises(ConfigError, match=said):
        model.embed_images(pixels(2))
    setattr(getattr(model, component), field, right)
    expected = model.embed_images(pixels(2)).features
    if component != "encoder":  # it computes the sources that it declares
        setattr(getattr(model, component), field, value)
    assert torch.equal(model.embed_images(pixels(2))[0], expected), "later passes check nothing"


def test_other_sources_and_a_fusion_without_a_declaration_are_named() -> None:
    with pytest.raises(ConfigError, match="encoder florence2 declares the sources davit but returned ocr"):
        check_sources("florence2", {"davit": DECLARED}, {"ocr": pixels(2)})
    with pytest.raises(ConfigError, match="encoder florence2 declares the sources davit but returned a Tensor"):
        check_sources("florence2", {"davit": DECLARED}, pixels(2))
    with pytest.raises(ConfigError, match="fusion film declares no output shape: its __init__ must set"):
        check_declarations(torch.nn.Identity(), "film")
