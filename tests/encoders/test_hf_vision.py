"""CLIP, SigLIP, DINOv2 and DINOv3 as encoders: the numbers of transformers' own models, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    Dinov2Config,
    DINOv3ViTConfig,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
)

from fvl_lightning.core.config.loading import choose
from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.core.types import FeatureSpec
from fvl_lightning.encoders.florence2 import Florence2Encoder
from fvl_lightning.encoders.hf_vision import HfVisionEncoder
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration
from fvl_lightning.stages.encoder_pretrain import EncoderPretrainStage
from tests.encoders.towers import CLIP, DINOV2, DINOV3, SIGLIP, TOWERS, encoder_of, whole_model
from tests.tiny_models import experiment, named_tensors, pixels, rows, snapshot

FLOAT64 = 1e-10
PREFIX = {"clip_vision_model": 1, "siglip_vision_model": 0, "dinov2": 1, "dinov2_with_registers": 3, "dinov3_vit": 5}
"""CLS and registers of the towers in tests/encoders/towers.py."""
ALL = ["layer_1", "last", "layer_3", "layer_2"]
NORMALISATION = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 20,
    "max_position_embeddings": 8,
    "projection_dim": 16,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints as transformers saves them, and an image processor's file; CLIP and SigLIP with text towers."""
    torch.manual_seed(3)
    wholes: dict[str, Any] = {
        "clip_vision_model": CLIPModel(
            CLIPConfig(text_config=CLIPTextConfig(**TEXT), vision_config=_without_type(CLIP))
        ),
        "siglip_vision_model": SiglipModel(
            SiglipConfig(text_config=SiglipTextConfig(**TEXT), vision_config=_without_type(SIGLIP))
        ),
    }
    folders = {}
    for model_type, model in TOWERS.items():
        whole = wholes.get(model_type) or AutoModel.from_config(AutoConfig.for_model(**model))
        folders[model_type] = tmp_path_factory.mktemp(model_type)
        whole.save_pretrained(folders[model_type])
        (folders[model_type] / "preprocessor_config.json").write_text(json.dumps(NORMALISATION), encoding="utf-8")
    return folders


def theirs_of(folder: Path) -> Any:
    """transformers' own vision model of a checkpoint, in float64 and eval mode."""
    whole = AutoModel.from_pretrained(folder)
    return (whole.vision_model if hasattr(whole, "vision_model") else whole).double().eval()


def from_released(folder: Path, **changes: Any) -> HfVisionEncoder:
    """The encoder of a checkpoint, in float64 and eval mode."""
    encoder = encoder_of({"name": "hf_vision", "pretrained": str(folder)} | changes, seed=5)
    encoder.load_pretrained()
    return encoder.double().eval()


def from_scratch(model: dict[str, Any], **changes: Any) -> HfVisionEncoder:
    return encoder_of({"name": "hf_vision", "model": model} | changes)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=FLOAT64, rtol=0)


# Numbers.


@pytest.mark.parametrize("model_type", TOWERS)
@torch.no_grad()
def test_features_are_transformers_own(released: dict[str, Path], model_type: str) -> None:
    """layer_k is hidden_states[k] and last is last_hidden_state of the tower loaded whole, CLS and registers apart."""
    theirs = theirs_of(released[model_type])
    images = pixels(2).double()
    output = theirs(images, output_hidden_states=True)
    wanted = {"last": output.last_hidden_state} | {f"layer_{k}": output.hidden_states[k] for k in (1, 2, 3)}
    for prefix_tokens, first in (("keep", 0), ("drop", PREFIX[model_type])):
        sources = from_released(released[model_type], sources=ALL, prefix_tokens=prefix_tokens)(images)
        assert list(sources) == ALL
        for name in ALL:
            assert sources[name].shape[1] == 16 + PREFIX[model_type] - first
            close(sources[name], wanted[name][:, first:])
    assert float((wanted["layer_1"] - wanted["layer_2"]).abs().max()) > 1e-3


@pytest.mark.parametrize("model_type", TOWERS)
@torch.no_grad()
def test_layers_alone_are_as_beside_the_rest(released: dict[str, Path], model_type: str) -> None:
    """What is taken out of the tower for a shallow source had no part in it."""
    images = pixels(2).double()
    whole = from_released(released[model_type], sources=ALL)
    for name, layers in (("layer_1", 1), ("layer_2", 2), ("last", 3)):
        alone = from_released(released[model_type], sources=[name])
        assert len(alone.blocks()) == layers
        close(alone(images)[name], whole(images)[name])


def test_what_last_is(released: dict[str, Path]) -> None:
    """SigLIP and DINO have a norm behind their last layer, CLIP has it for its pooled token alone."""
    images = pixels(1).double()
    for model_type in TOWERS:
        sources = from_released(released[model_type], sources=["layer_3", "last"])(images)
        same = torch.equal(sources["layer_3"], sources["last"])
        assert same == (model_type == "clip_vision_model"), model_type


@torch.no_grad()
def test_tokens_are_row_major() -> None:
    """A change in the patch of row 1, column 2 changes token 1 * 4 + 2 of the first layer most."""
    for model in (CLIP, SIGLIP, DINOV2, DINOV3):
        encoder = from_scratch(model, sources=["layer_1"])
        images = pixels(1)
        changed = images.clone()
        changed[:, :, 4:8, 8:12] += 3
        difference = (encoder(changed)["layer_1"] - encoder(images)["layer_1"]).abs().sum(-1)
        assert int(difference.argmax()) == 6


@pytest.mark.parametrize("model", [DINOV2, DINOV3], ids=["dinov2", "dinov3_vit"])
@pytest.mark.parametrize("size", [8, 24, 30])
@torch.no_grad()
def test_other_sizes_where_positions_reach(model: dict[str, Any], size: int) -> None:
    """As transformers interpolates; 30 px are 7 patches of 4 and a rest that is cut off."""
    encoder = from_scratch(model, image_size=size)
    side = size // 4
    assert encoder.image_size == size
    assert encoder.specs == {"last": FeatureSpec(side * side, 16, (side, side))}
    images = pixels(2, size=size)
    wanted = encoder.tower(images).last_hidden_state
    assert torch.equal(encoder(images)["last"], wanted[:, -side * side :])


def test_initial_values_do_not_hang_on_the_sources() -> None:
    for model in (CLIP, SIGLIP, DINOV2, DINOV3):
        shallow, deep = (from_scratch(model, sources=[name]) for name in ("layer_1", "last"))
        weights = deep.state_dict()
        for name, tensor in shallow.state_dict().items():
            assert torch.equal(tensor, weights[name]), name


# Building, saving, training.


@pytest.mark.parametrize("model_type", TOWERS)
def test_a_whole_model_is_saved_and_loaded(tmp_path: Path, model_type: str) -> None:
    """Bit for bit, buffers included, and from the folder alone."""
    model = whole_model({"name": "hf_vision", "model": TOWERS[model_type], "sources": ["layer_2", "last"]})
    model.save_pretrained(tmp_path)
    loaded = FlorenceVLForConditionalGeneration.from_pretrained(tmp_path).eval()
    expected, found = dict(named_tensors(model)), dict(named_tensors(loaded))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert loaded.image_spec == model.image_spec


def test_the_checkpoint_is_read_once(released: dict[str, Path], tmp_path: Path) -> None:
    """A resolved Config, and a model saved from it, need the checkpoint no more."""
    folder = shutil.copytree(released["siglip_vision_model"], tmp_path / "hub")
    config = HfVisionEncoder.resolve(HfVisionEncoder.Config(pretrained=str(folder), sources=["layer_2"]))
    model = whole_model({"name": "hf_vision", "pretrained": str(folder), "sources": ["layer_2"]})
    model.save_pretrained(tmp_path / "model")
    shutil.rmtree(folder)
    assert HfVisionEncoder.resolve(config) == config
    assert HfVisionEncoder(config).specs == {"layer_2": FeatureSpec(16, 16, (4, 4))}
    loaded = FlorenceVLForConditionalGeneration.from_pretrained(tmp_path / "model").eval()
    assert loaded.image_spec.mean == (0.1, 0.2, 0.3)
    assert torch.equal(loaded.encoder(pixels(1))["layer_2"], model.encoder(pixels(1))["layer_2"])


@pytest.mark.parametrize("sources", [["layer_1"], ["last"], ["layer_3", "layer_1"]])
@pytest.mark.parametrize("model_type", TOWERS)
def test_every_parameter_learns(model_type: str, sources: list[str]) -> None:
    """Whatever the sources: no parameter is there that none of them reads."""
    encoder = from_scratch(TOWERS[model_type], sources=sources).train()
    torch.manual_seed(0)
    sum((feature * torch.randn_like(feature)).sum() for feature in encoder(pixels(2)).values()).backward()
    without = [name for name, parameter in encoder.named_parameters() if parameter.grad is None]
    assert not without


@pytest.mark.parametrize("mode", ["frozen", "full"])
def test_frozen_and_trained_within_a_model(mode: str) -> None:
    model = whole_model({"name": "hf_vision", "model": DINOV2, "sources": ["layer_2"]})
    model.encoder.requires_grad_(mode == "full")
    batch = rows(2)
    ids = torch.cat([batch.token_ids[:, :1], batch.token_ids[:, 1:2].expand(-1, 16), batch.token_ids[:, 5:]], dim=1)
    labels = torch.cat([batch.labels[:, :1], batch.labels[:, 1:2].expand(-1, 16), batch.labels[:, 5:]], dim=1)
    before = snapshot(model.encoder)
    model(ids, pixel_values=batch.images, labels=labels).loss.backward()
    got = {name for name, parameter in model.encoder.named_parameters() if parameter.grad is not None}
    assert got == (set(dict(model.encoder.named_parameters())) if mode == "full" else set())
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0).step()
    moved = [name for name, tensor in named_tensors(model.encoder) if not torch.equal(tensor, before[name])]
    assert bool(moved) == (mode == "full")


def test_loading_says_nothing_of_the_text_tower(released: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    for model_type in ("clip_vision_model", "siglip_vision_model"):
        from_released(released[model_type])
    assert "UNEXPECTED" not in caplog.text


# Real sizes.

_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
REAL = {
    "CLIP ViT-L/14, 336 px": (
        CLIPVisionConfig(**_LARGE, intermediate_size=4096, image_size=336, patch_size=14),
        24,
        # 602,112 of the patches, 1,024 of CLS, 590,848 of 577 positions, 2,048 of the norm before the layers and
        # 12,596,224 a layer; not the 2,048 of the norm of the pooled token.
        {"last": 303_505_408, "layer_23": 290_909_184},
    ),
    "SigLIP SO400M/14, 384 px": (
        SiglipVisionConfig(
            hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16, image_size=384,
            patch_size=14,
        ),
        27,
        # 678,528 of the patches, 839,808 of 729 positions, 15,239,504 a layer, 2,304 of the last norm; not the pooling
        # head.
        {"last": 412_987_248, "layer_26": 397_745_440},
    ),
    "DINOv2 ViT-L/14, 518 px": (
        Dinov2Config(**_LARGE, image_size=518, patch_size=14),
        37,
        # 603,136 of the patches, 1,024 of CLS, 1,402,880 of 1,370 positions, 12,598,272 a layer, 2,048 of the last
        # norm; not the 1,024 of the mask token.
        {"last": 304_367_616},
    ),
    "DINOv3 ViT-L/16, 224 px": (
        DINOv3ViTConfig(**_LARGE, intermediate_size=4096, num_register_tokens=4),
        14,
        # 787,456 of the patches, 5,120 of CLS and registers, 12,597,248 a layer (no bias of the keys), 2,048 of the
        # last norm; not the 1,024 of the mask token.
        {"last": 303_128_576},
    ),
}
"""Configuration, patches a side, and the parameters of the tower as it is built for one source."""


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_released_sizes(name: str) -> None:
    """On the meta device, parameters counted one by one."""
    config, side, counts = REAL[name]
    for source, count in counts.items():
        entry = {"name": "hf_vision", "model": config.to_dict(), "sources": [source]}
        choice = choose("encoder", entry)
        with torch.device("meta"):
            encoder = choice.component(choice.component.resolve(choice.config))
        assert all(tensor.is_meta for _, tensor in named_tensors(encoder))
        assert sum(parameter.numel() for parameter in encoder.parameters()) == count
        assert encoder.specs == {source: FeatureSpec(side * side, config.hidden_size, (side, side))}


# What images are prepared with.


def test_normalisation_of_a_checkpoint_is_its_image_processors(released: dict[str, Path], tmp_path: Path) -> None:
    for folder in released.values():
        encoder = from_released(folder)
        assert (encoder.mean, encoder.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    folder = shutil.copytree(released["clip_vision_model"], tmp_path / "clip")
    CLIPImageProcessorPil(image_mean=[0.7] * 3, image_std=[0.8] * 3).save_pretrained(folder)
    assert from_released(folder).mean == (0.7, 0.7, 0.7)
    assert from_released(folder, std=[0.3, 0.2, 0.1]).std == (0.3, 0.2, 0.1)


def test_normalisation_from_scratch_is_the_familys() -> None:
    assert from_scratch(CLIP).mean == (0.48145466, 0.4578275, 0.40821073)
    assert from_scratch(CLIP).std == (0.26862954, 0.26130258, 0.27577711)
    assert from_scratch(SIGLIP).mean == from_scratch(SIGLIP).std == (0.5, 0.5, 0.5)
    for model in (DINOV2, DINOV3):
        assert from_scratch(model).mean == (0.485, 0.456, 0.406)
        assert from_scratch(model).std == (0.229, 0.224, 0.225)
    assert from_scratch(CLIP, mean=[0, 0, 0], std=[1, 1, 1]).mean == (0, 0, 0)


# What is refused.


def refused(entry: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        encoder_of({"name": "hf_vision"} | entry)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({}, "encoder: give `pretrained` (hub id or folder) or `model` (sizes, from scratch)"),
        (
            {"model": {**DINOV2, "model_type": "dinov1"}},
            "encoder.model.model_type: 'dinov1' is no model of transformers, such as dinov2 or convnextv2; did you "
            "mean 'dinov2'?",
        ),
        ({"model": {"hidden_size": 8}}, "encoder.model.model_type: 'None' is no model of transformers"),
        ({"model": {**CLIP, "hiden_size": 8}}, "encoder.model.hiden_size: unknown key 'hiden_size'"),
        ({"model": {**CLIP, "hidden_size": "wide"}}, "encoder.model: it cannot be built: "),
        ({"model": {**CLIP, "hidden_size": 15}}, "encoder.model: it cannot be built: Class validation error"),
        (
            {"model": {**SIGLIP, "hidden_size": 15}},
            "encoder.model.num_attention_heads: 2 heads do not divide a width of 15",
        ),
        ({"model": {**DINOV2, "num_attention_heads": 0}}, "encoder.model.num_attention_heads: 0 heads do not divide"),
        ({"model": {**DINOV3, "num_attention_heads": 0}}, "encoder.model.num_attention_heads: 0 heads do not divide"),
        (
            {"model": {**DINOV3, "hidden_size": 12}},
            "encoder.model: for rotary positions hidden_size / num_attention_heads must be a multiple of 4",
        ),
        ({"model": {**CLIP, "num_channels": 1}}, "encoder.model.num_channels: images have 3 channels, found 1"),
        ({"model": {**DINOV2, "image_size": [16, 8]}}, "encoder.model.image_size: expected the side of a square"),
        ({"model": CLIP, "image_size": 32}, "encoder.image_size: 32 px, but this tower has positions for 16 px only"),
        ({"model": SIGLIP, "image_size": 8}, "encoder.image_size: 8 px, but this tower has positions for 16 px only"),
        ({"model": DINOV2, "image_size": 3}, "encoder.image_size: 3 px are less than one patch of 4 px"),
        (
            {"model": CLIP, "sources": ["layer_4"]},
            "encoder.sources: 'layer_4' is not one of last, layer_1 to layer_3, depth_1 to depth_100, group_1_of_2 to "
            "group_3_of_3; did you mean 'layer_3'?",
        ),
        ({"model": CLIP, "sources": ["layer_0"]}, "encoder.sources: 'layer_0' is not one of last, layer_1 to layer_3"),
        ({"model": CLIP, "sources": ["lst"]}, "encoder.sources: 'lst' is not one of last, layer_1 to layer_3, depth_1"),
        ({"model": CLIP, "sources": []}, "encoder.sources: it is empty, name at least one of last, layer_1 to"),
        ({"model": CLIP, "sources": ["last", "last"]}, "encoder.sources: a source is named twice in last, last"),
        ({"model": CLIP, "std": [0.5, 0, 0.5]}, "encoder: std must be above 0, not 0"),
        ({"model": CLIP, "mean": [0.5]}, "encoder: mean: expected tuple[float, float, float], found [0.5]"),
        ({"model": CLIP, "prefix_tokens": "kep"}, "encoder: prefix_tokens: unknown value 'kep', allowed: drop"),
        ({"pretrained": "/nowhere/model"}, "encoder: /nowhere/model could not be read: "),
    ],
)
def test_mistakes_are_one_sentence(entry: dict[str, Any], says: str) -> None:
    assert refused(entry).startswith(says)


def test_a_checkpoint_without_an_image_processor(released: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(released["clip_vision_model"], tmp_path / "clip")
    (folder / "preprocessor_config.json").unlink()
    said = refused({"pretrained": str(folder)})
    assert said.startswith(f"encoder: no mean and std can be read for {folder} (preprocessor_config.json); write them")
    assert "[0.48145466, 0.4578275, 0.40821073]" in said
    assert from_released(folder, mean=[0, 0, 0], std=[1, 1, 1]).std == (1, 1, 1)


def test_a_checkpoint_of_another_kind(tmp_path: Path) -> None:
    AutoConfig.for_model("bert").save_pretrained(tmp_path)
    said = refused({"pretrained": str(tmp_path)})
    assert said == f"encoder.pretrained: {tmp_path}: bert is no vision tower, it takes input_ids in place of images"
    AutoConfig.for_model("siglip2").save_pretrained(tmp_path)
    assert "siglip2_vision_model needs pixel_attention_mask, spatial_shapes" in refused({"pretrained": str(tmp_path)})


def test_weights_that_are_missing_or_of_another_shape(released: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(released["dinov2"], tmp_path / "dinov2")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for change, says in (
        ({"num_hidden_layers": 4}, "lacks 18 of its weights, such as encoder.layer.3"),
        ({"mlp_ratio": 3}, "has 9 weights of other sizes than its configuration, such as encoder.layer.0.mlp"),
        ({"num_hidden_layers": 2}, "holds 18 weights without a place in the model, such as encoder.layer.2."),
    ):
        changed = {key: value for key, value in config.items() if key not in ("stage_names", "out_features")}
        changed = {key: value for key, value in changed.items() if key != "out_indices"} | change
        (folder / "config.json").write_text(json.dumps(changed), encoding="utf-8")
        with pytest.raises(ConfigError, match=says) as caught:
            from_released(folder)
        assert "\n" not in str(caught.value)


def test_weights_that_are_no_numbers_are_named(released: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(released["dinov2"], tmp_path / "dinov2")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("layer.1.mlp.fc1.weight"))
    weights[name][0, 0] = float("inf")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=rf"^encoder: {folder} holds NaN or infinite numbers, in {name}; "):
        from_released(folder)


def test_pickles_are_not_read(released: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(released["dinov2"], tmp_path / "dinov2")
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="could not be read"):
        from_released(folder)


def test_there_is_no_decoder_to_train(tmp_path: Path) -> None:
    config = experiment(tmp_path, "encoder_pretrain", "tasks")
    config.encoder = choose("encoder", {"name": "hf_vision", "model": CLIP})
    with pytest.raises(ConfigError, match="encoder: hf_vision has no decoder to train, take florence2"):
        EncoderPretrainStage.build(config)


def _without_type(model: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in model.items() if key != "model_type"}


def test_a_config_that_was_not_resolved() -> None:
    with pytest.raises(ConfigError, match=r"^encoder: image_size, mean and std are not set, resolve the Config first$"):
        HfVisionEncoder(HfVisionEncoder.Config(model=dict(CLIP)))


def test_what_can_be_decoded_is_said_by_the_class() -> None:
    assert Florence2Encoder.can_decode()
    assert not HfVisionEncoder.can_decode()
