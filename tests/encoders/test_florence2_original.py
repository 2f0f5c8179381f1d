"""Florence-2 in Microsoft's layout as `encoder.pretrained`: the same features and texts as from a native folder."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import BertConfig, Florence2Config, Florence2ForConditionalGeneration

from fvl_lightning.core.errors import UserError
from fvl_lightning.encoders.florence2 import Florence2Encoder
from fvl_lightning.encoders.florence2_files import find_image_size
from fvl_lightning.encoders.florence2_original import ADDED_TOKENS, original_sizes
from fvl_lightning.modeling.conversion.florence_vl_config import PROMPT_IDS
from tests.encoders import original
from tests.modeling.conversion.original_layout import TOWER, save_weights
from tests.tiny_models import initialized, prompted

Weights = dict[str, Tensor]
INSIDE = "model.vision_tower.vision_tower."
FEATURE = 1e-4
"""What tests/fixtures/README.md allows between the original's float32 and ours."""
SHORT = {"caption": "a", "ocr": "hi", "grounding": "b"}
"""Prompts of few bytes: the text encoder of the fixture holds 64 tokens."""
WORDS = 261
"""Tokens of the tokenizer in the folders: the special ones and a byte each; a released one has 50,265."""


@pytest.fixture(scope="module")
def weights() -> Weights:
    """The parity fixture's tower as Microsoft's repositories hold it: the same names without a prefix."""
    whole = original.tensors("llama/model.safetensors")
    return {name.removeprefix(INSIDE): value for name, value in whole.items() if name.startswith(INSIDE)}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory, weights: Weights) -> Path:
    """A folder in Microsoft's layout."""
    return save_original(tmp_path_factory.mktemp("theirs"), weights)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory, weights: Weights, theirs: Path) -> Path:
    """The same weights as transformers saves them. BART's names are taken over here, without the rules under test."""
    model = Florence2ForConditionalGeneration(Florence2Config(**original_sizes(TOWER)))
    bart = "language_model.model."
    parts = {name.removeprefix(bart): value for name, value in weights.items() if name.startswith(bart)}
    model.model.language_model.load_state_dict(parts)
    encoder = loaded(theirs)
    model.model.vision_tower.load_state_dict(encoder.vision_tower.state_dict())
    model.model.multi_modal_projector.load_state_dict(encoder.image_projector.state_dict())
    folder = tmp_path_factory.mktemp("native")
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_original(folder: Path, weights: Weights, **layout: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(TOWER), encoding="utf-8")
    save_tokenizer(folder)
    save_weights(folder, weights, **layout)
    return folder


def save_tokenizer(folder: Path) -> None:
    """As in Microsoft's repositories: a byte-level tokenizer.json, and a configuration that names no class."""
    words = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "<mask>"]
    tokenizer = Tokenizer(models.BPE(vocab={word: id_ for id_, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1024}', encoding="utf-8")


def loaded(folder: Path | str, **changes: Any) -> Florence2Encoder:
    fields = {
        "pretrained": str(folder), "image_size": 128, "prompt_ids": PROMPT_IDS, "pooled_token": "keep",
        "prompt_pads": "attend",
    }
    config = Florence2Encoder.resolve(Florence2Encoder.Config(**fields | changes))
    encoder = initialized("encoder", Florence2Encoder(config), seed=3)
    encoder.load_pretrained()
    return encoder.eval()


@torch.no_grad()
def test_features_are_those_of_the_originals_code(theirs: Path) -> None:
    io = original.tensors("vision_io.safetensors")
    features = loaded(theirs)(io["pixel_values"])
    torch.testing.assert_close(features["davit"], io["image_feature_128"], atol=FEATURE, rtol=0)
    states = torch.cat([features[task] for task in original.TASKS], dim=-1)
    torch.testing.assert_close(states, io["encoder_states_128"], atol=FEATURE, rtol=0)


@pytest.mark.parametrize("decoder", ["drop", "keep"])
@torch.no_grad()
def test_a_native_folder_of_the_same_weights_gives_the_same_bits(theirs: Path, native: Path, decoder: str) -> None:
    one, other = loaded(theirs, decoder=decoder), loaded(native, decoder=decoder)
    states = one.state_dict(), other.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert any(name.startswith("decoder.") for name in states[0]) == (decoder == "keep")
    images = original.tensors("vision_io.safetensors")["pixel_values"]
    for name, feature in one(images).items():
        assert torch.equal(feature, other(images)[name])


@torch.no_grad()
def test_the_decoder_is_transformers_own(theirs: Path, native: Path) -> None:
    ours = loaded(theirs, decoder="keep")
    model = Florence2ForConditionalGeneration.from_pretrained(native).eval()
    images, targets = original.tensors("vision_io.safetensors")["pixel_values"], prompted(2).targets
    logits = ours.logits(ours.decode(images, targets))
    assert logits[0, 0].argmax(-1).unique().numel() > 1, "one word for everything shows nothing"
    prompt = model.get_input_embeddings()(torch.tensor([PROMPT_IDS["grounding"]] * 2))
    projected = model.get_image_features(images).pooler_output
    output = model(inputs_embeds=torch.cat([projected, prompt], dim=1), labels=targets[:, 2].contiguous())
    torch.testing.assert_close(logits[:, 2], output.logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("files", "bin"), [(1, True), (3, False), (3, True)], ids=["bin", "3 safetensors", "3 bin"])
def test_every_layout_of_files(tmp_path: Path, weights: Weights, theirs: Path, files: int, bin: bool) -> None:
    folder = save_original(tmp_path / "there", weights, files=files, bin=bin)
    expected = loaded(theirs, decoder="keep").state_dict()
    found = loaded(folder, decoder="keep").state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


@pytest.mark.parametrize("kept", ["shared", "encoder.embed_tokens", "decoder.embed_tokens"])
def test_any_copy_of_the_token_table_will_do(tmp_path: Path, weights: Weights, kept: str) -> None:
    copies = [name for name in weights if name.endswith(("shared.weight", "embed_tokens.weight", "lm_head.weight"))]
    assert len(copies) == 4
    name = f"language_model.model.{kept}.weight"
    others = {key: value for key, value in weights.items() if key not in copies or key == name}
    encoder = loaded(save_original(tmp_path / "there", others))
    assert torch.equal(encoder.text_encoder.embed_tokens.weight, weights[name].float())


def test_half_precision_is_read_as_what_it_is(tmp_path: Path, weights: Weights) -> None:
    halves = {name: value.half() for name, value in weights.items()}
    convolution = loaded(save_original(tmp_path / "there", halves)).vision_tower.convs[0].conv.weight
    assert torch.equal(convolution, halves["vision_tower.convs.0.proj.weight"].float())


def test_location_tokens_are_where_the_original_processor_puts_them(theirs: Path, native: Path) -> None:
    """Behind a released tokenizer of 50,265 they fill the table of 51,289; a native folder's has its own already."""
    assert len(set(ADDED_TOKENS)) == len(ADDED_TOKENS) == 1024
    assert 50265 + ADDED_TOKENS.index("<loc_0>") == 50269
    tokenizer = Florence2Encoder.load_tokenizer(Florence2Encoder.Config(pretrained=str(theirs)))
    assert len(tokenizer) == WORDS + 1024
    ids = tokenizer("a cat<loc_0><loc_999>").input_ids
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 2)
    assert ids[-3:-1] == [WORDS + 4, WORDS + 1003]
    assert tokenizer.pad_token_id == 1
    assert tokenizer.decode(ids[1:-1]) == "a cat<loc_0><loc_999>"
    assert "<loc_0>" not in Florence2Encoder.load_tokenizer(Florence2Encoder.Config(pretrained=str(native))).get_vocab()
    tokenizer.save_pretrained(theirs / "again")
    (theirs / "again" / "config.json").write_text(json.dumps(TOWER), encoding="utf-8")
    again = Florence2Encoder.load_tokenizer(Florence2Encoder.Config(tokenizer=str(theirs / "again")))
    assert len(again) == len(tokenizer), "those that are there are not added twice"


def test_prompts_are_written_with_the_tokenizer_of_the_folder(theirs: Path) -> None:
    config = loaded(theirs, prompt_ids={"caption": [0, 9, 2]}, prompts=SHORT).config
    assert config.prompt_ids["caption"] == [0, 9, 2]
    tokenizer = Florence2Encoder.load_tokenizer(config)
    assert tokenizer.convert_ids_to_tokens(config.prompt_ids["ocr"]) == ["<s>", "h", "i", "</s>"]


def test_what_is_resolved_builds_without_the_files(theirs: Path) -> None:
    config = loaded(theirs).config
    assert Florence2Encoder.resolve(config) == config
    assert Florence2Encoder(config).specs == loaded(theirs).specs


# From the hub: a cache as huggingface_hub keeps it, and no network.


@pytest.fixture
def hub(tmp_path: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """{revision: folder} of someone/florence in a cache; `old` holds other values in .bin, `parts` in several files."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--someone--florence"
    (repository / "refs").mkdir(parents=True)
    (repository / "snapshots").mkdir()
    folders = {}
    for number, (name, layout) in enumerate({"main": {}, "old": {"bin": True}, "parts": {"files": 3}}.items()):
        commit = f"{number:040x}"
        values = {key: value + number for key, value in weights.items()}
        folders[name] = save_original(repository / "snapshots" / commit, values, **layout)
        (repository / "refs" / name).write_text(commit, encoding="utf-8")
    return folders


@pytest.mark.parametrize("revision", [None, "main", "old", "parts"])
def test_a_hub_id_in_the_originals_layout(hub: dict[str, Path], revision: str | None) -> None:
    found = loaded("someone/florence", revision=revision, decoder="keep", prompt_ids={}, prompts=SHORT)
    expected = loaded(hub[revision or "main"], decoder="keep").state_dict()
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in expected.items())
    assert "<loc_999>" in Florence2Encoder.load_tokenizer(found.config).get_vocab()


def test_a_hub_repository_without_weights(hub: dict[str, Path]) -> None:
    (hub["main"] / "model.safetensors").unlink()
    refused("someone/florence", "encoder: someone/florence could not be read: it has no weights, expected model.safe")


def test_images_have_the_size_that_the_repository_says(hub: dict[str, Path], tmp_path: Path) -> None:
    assert find_image_size("someone/florence") == 768
    (hub["main"] / "preprocessor_config.json").write_text('{"size": {"height": 96, "width": 96}}', encoding="utf-8")
    assert find_image_size("someone/florence") == find_image_size(str(hub["main"])) == 96
    assert find_image_size("someone/florence", "old") == 768


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(("source", "revision"), [("someone/florence", "new"), ("nobody/florence", None)])
def test_a_hub_id_that_is_not_there(source: str, revision: str | None) -> None:
    refused(source, f"encoder: {source} could not be read: ", revision=revision)


# What is refused.


def refused(folder: Path | str, says: str, **changes: Any) -> None:
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        loaded(folder, **changes)
    assert "\n" not in str(caught.value)


def edited(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    config = json.loads(json.dumps(TOWER))
    change(config)
    return config


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c["vision_config"].pop("depths"), "lacks depths, which the model cannot be built without"),
        (lambda c: c.pop("text_config"), "lacks text_config"),
        (lambda c: c["vision_config"]["image_pos_embed"].update(type="rope"), "of type 'rope', expected 'learned_abs"),
        (lambda c: c.update(model_type="llava"), "is a model of type 'llava', expected a Florence-2 ('florence2')"),
        (lambda c: c["text_config"].update(d_model=24), "projection_dim is 16 and text_config.d_model 24"),
        (lambda c: c["text_config"].update(encoder_ffn_dim=32), "6 values of other sizes than its configuration"),
        (lambda c: c["text_config"].update(encoder_layers=1), "16 of its keys have no place in the model"),
        (lambda c: c["vision_config"].update(depths=[1, 1, 3, 1]), "values of the model are not in it"),
    ],
)
def test_a_configuration_that_is_wrong(
    tmp_path: Path, weights: Weights, change: Callable[[dict[str, Any]], Any], says: str
) -> None:
    folder = save_original(tmp_path / "there", weights)
    (folder / "config.json").write_text(json.dumps(edited(change)), encoding="utf-8")
    refused(folder, says)


def test_keys_without_a_place_and_values_that_are_missing(tmp_path: Path, weights: Weights) -> None:
    more = {**weights, "vision_tower.head.weight": torch.zeros(2), "extra": torch.zeros(1)}
    says = "2 of its keys have no place in the model (extra, vision_tower.head.weight)"
    refused(save_original(tmp_path / "more", more), says)
    less = {name: value for name, value in weights.items() if name != "image_projection"}
    says = "1 values of the model are not in it (image_projector.image_projection.weight)"
    refused(save_original(tmp_path / "less", less), says)
    without = {name: value for name, value in weights.items() if ".decoder.layers" not in name}
    folder = save_original(tmp_path / "without", without)
    assert loaded(folder).decoder is None
    refused(folder, "values of the model are not in it (decoder.layers.0.", decoder="keep")


def test_a_folder_of_another_model_or_of_none(tmp_path: Path, theirs: Path) -> None:
    BertConfig().save_pretrained(tmp_path)
    refused(tmp_path, f"{tmp_path} is a model of type 'bert', expected a Florence-2")
    (tmp_path / "config.json").unlink()
    refused(tmp_path, f"{tmp_path} could not be read: it has no config.json")
    (tmp_path / "config.json").write_text((theirs / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
    refused(tmp_path, f"{tmp_path} holds no weights, expected model.safetensors or pytorch_model.bin")


def test_configuration_and_weights_of_different_layouts(tmp_path: Path, theirs: Path, native: Path) -> None:
    """transformers would begin with random values where a native checkpoint lacks some."""
    cases = (theirs, native, "have no place in the model"), (native, theirs, "of its weights, such as")
    for config, held, says in cases:
        folder = tmp_path / held.name
        folder.mkdir()
        (folder / "config.json").symlink_to(config / "config.json")
        (folder / "model.safetensors").symlink_to(held / "model.safetensors")
        refused(folder, says)


def test_pickles_are_read_as_tensors_only(tmp_path: Path, weights: Weights) -> None:
    folder = save_original(tmp_path / "there", weights, bin=True)
    torch.save({**weights, "spoilt": Path("x")}, folder / "pytorch_model.bin")
    refused(folder, "pytorch_model.bin is not a readable file of tensors")


def test_a_native_file_that_is_cut_short(tmp_path: Path, native: Path) -> None:
    (tmp_path / "config.json").symlink_to(native / "config.json")
    save_file({"a": torch.zeros(9)}, tmp_path / "whole.safetensors")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-4])
    refused(tmp_path, f"{tmp_path} could not be read")


@pytest.mark.parametrize("name", ["lm_head.weight", "model.language_model.decoder.embed_tokens.weight"])
def test_a_native_file_with_two_tables_has_no_decoder_here(tmp_path: Path, native: Path, name: str) -> None:
    (tmp_path / "config.json").symlink_to(native / "config.json")
    values = load_file(native / "model.safetensors")
    tables = "lm_head.weight", "model.language_model.decoder.embed_tokens.weight"
    copies = dict.fromkeys([*tables, "model.language_model.encoder.embed_tokens.weight"], table_of(values))
    other = {name: table_of(values) + 1}
    save_file({key: value.clone() for key, value in (values | copies | other).items()}, tmp_path / "model.safetensors",
              {"format": "pt"})
    refused(tmp_path, f"other values in {name.removeprefix('model.language_model.')} than in the table", decoder="keep")
    assert loaded(tmp_path).decoder is None


def table_of(values: Weights) -> torch.Tensor:
    """The one token table of a native file."""
    return values["model.language_model.shared.weight"]


@pytest.mark.parametrize("layout", ["theirs", "native"])
def test_values_that_are_no_numbers_are_named(tmp_path: Path, layout: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(layout)
    (tmp_path / "config.json").symlink_to(folder / "config.json")
    values = {key: value.clone() for key, value in load_file(folder / "model.safetensors").items()}
    name = next(key for key in values if key.endswith("encoder.layers.0.fc1.weight"))
    values[name][0, 0] = float("nan")
    save_file(values, tmp_path / "model.safetensors", {"format": "pt"})
    refused(tmp_path, "holds NaN or infinite numbers, in ")
