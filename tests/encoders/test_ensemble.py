"""The ensemble: each member gets its own images, and gives the features that it gives by itself."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoModel

from datamodules.images.transforms import to_pixels
from fvl_lightning.core.config.loading import Choice, choose, load_config
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.types import FeatureSpec, ImageSpec
from fvl_lightning.encoders.ensemble import EnsembleEncoder
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration
from fvl_lightning.stages.encoder_pretrain import EncoderPretrainStage
from tests.encoders.towers import CLIP, DINOV2, DINOV3, SIGLIP, encoder_of, whole_model
from tests.tiny_models import encoder_config, experiment, named_tensors, pixels

FLORENCE = {"name": "florence2", **dataclasses.asdict(encoder_config(sources=["davit", "ocr"]))}
CLIP_2 = {"name": "hf_vision", "model": CLIP, "sources": ["layer_2"]}
DINO_24 = {"name": "hf_vision", "model": DINOV2, "image_size": 24}
THREE = {"florence": FLORENCE, "clip": CLIP_2, "dino": DINO_24}
Seen = dict[str, Tensor]


def ensemble_of(**members: Any) -> EnsembleEncoder:
    return encoder_of({"name": "ensemble", "members": members})


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Callable[[EnsembleEncoder, Tensor], Seen]:
    """The images that reach each member."""

    def watch(encoder: EnsembleEncoder, images: Tensor) -> Seen:
        caught: Seen = {}
        for name, member in encoder.members.items():
            member.register_forward_pre_hook(lambda _, args, name=name: caught.update({name: args[0]}))
        with torch.no_grad():
            encoder(images)
        return caught

    return watch


# Sources.


@torch.no_grad()
def test_each_member_is_what_it_is_alone(seen: Any) -> None:
    """The sources are the members' own, in order, of the images as they reach each."""
    encoder = ensemble_of(**THREE)
    images = pixels(2, size=24)
    sources = encoder(images)
    assert list(sources) == list(encoder.specs) == ["florence_davit", "florence_ocr", "clip_layer_2", "dino_last"]
    given = seen(encoder, images)
    for name, member in encoder.members.items():
        for source, feature in member(given[name]).items():
            assert torch.equal(feature, sources[f"{name}_{source}"])


def test_specs_keep_each_members_grid() -> None:
    encoder = ensemble_of(**THREE)
    assert encoder.specs == {
        "florence_davit": FeatureSpec(4, 16, (2, 2)),
        "florence_ocr": FeatureSpec(4, 16, (2, 2)),
        "clip_layer_2": FeatureSpec(16, 16, (4, 4)),
        "dino_last": FeatureSpec(36, 16, (6, 6)),
    }
    assert len(encoder.blocks()) == 3 + 4 - 2 + 2 + 3


def test_the_order_is_as_written_or_as_told() -> None:
    """And it is kept where the keys of a mapping are not."""
    members = {"dino": DINO_24, "clip": CLIP_2}
    assert list(ensemble_of(**members).specs) == ["dino_last", "clip_layer_2"]
    told = encoder_of({"name": "ensemble", "members": members, "order": ["clip", "dino"]})
    assert list(told.specs) == ["clip_layer_2", "dino_last"]
    resolved = Choice("encoder", "ensemble", ensemble_of(**members).config).as_dict()
    again = encoder_of(json.loads(json.dumps(resolved, sort_keys=True)))
    assert list(again.specs) == ["dino_last", "clip_layer_2"]


def test_prompts_are_those_of_the_members() -> None:
    other = {**FLORENCE, "sources": ["grounding", "ocr"]}
    assert ensemble_of(a=FLORENCE, b=other, clip=CLIP_2).tasks == ("ocr", "grounding")
    assert ensemble_of(clip=CLIP_2).tasks == ()


# Images.


def test_images_come_as_the_largest_member_wants_them() -> None:
    encoder = ensemble_of(**THREE)
    assert encoder.image_size == 24
    assert encoder.mean == encoder.members["dino"].mean
    assert encoder.std == encoder.members["dino"].std
    first = ensemble_of(clip=CLIP_2, siglip={"name": "hf_vision", "model": SIGLIP})
    assert first.mean == first.members["clip"].mean != first.members["siglip"].mean


def test_a_member_of_the_same_size_and_normalisation_gets_the_very_tensor(seen: Any) -> None:
    images = pixels(2, size=24)
    again = {**DINO_24, "sources": ["layer_1"]}
    given = seen(ensemble_of(dino=DINO_24, clip=CLIP_2, again=again), images)
    assert given["dino"] is images
    assert given["again"] is images
    assert given["clip"] is not images
    assert tuple(given["clip"].shape) == (2, 3, 16, 16)


def test_another_normalisation_is_as_if_prepared_for_it(seen: Any) -> None:
    """The pixels of an image prepared for one member, as the data prepares them for the other."""
    images = [np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8) for seed in (1, 2)]
    encoder = ensemble_of(clip=CLIP_2, siglip={"name": "hf_vision", "model": SIGLIP})
    prepared = {
        name: to_pixels(images, ImageSpec(16, member.mean, member.std, 0)) for name, member in encoder.members.items()
    }
    given = seen(encoder, prepared["clip"])
    assert given["clip"] is prepared["clip"]
    torch.testing.assert_close(given["siglip"], prepared["siglip"], atol=1e-6, rtol=0)


def resized(seen: Any, image: NDArray[np.uint8]) -> Tensor:
    """What reaches a member of 16 px of an image prepared for a larger one, in levels of 0 to 255: [16, 16, 3]."""
    side = image.shape[0]
    encoder = ensemble_of(clip=CLIP_2, dino={**DINO_24, "image_size": side})
    clip, dino = encoder.members["clip"], encoder.members["dino"]
    given = seen(encoder, to_pixels([image], ImageSpec(side, dino.mean, dino.std, 0)))["clip"]
    levels = given * torch.tensor(clip.std).view(3, 1, 1) + torch.tensor(clip.mean).view(3, 1, 1)
    return (levels * 255)[0].permute(1, 2, 0)


@pytest.mark.parametrize("side", [20, 33, 64])
def test_another_size_is_as_an_image_library_resizes(seen: Any, side: int) -> None:
    """To the rounding of Pillow's bicubic, which has whole levels."""
    places = np.linspace(0, 3, side)
    waves = np.stack([np.sin(places[:, None] * k + places[None, :]) for k in (1, 2, 3)], axis=-1)
    image = (127 + 100 * waves).astype(np.uint8)
    wanted = np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BICUBIC))
    assert float((resized(seen, image) - torch.tensor(wanted)).abs().max()) < 1.01


def test_resized_pixels_stay_within_what_pixels_can_be(seen: Any) -> None:
    """Bicubic goes beyond at an edge from black to white."""
    image = np.zeros((48, 48, 3), dtype=np.uint8)
    image[:, 25:] = 255
    levels = resized(seen, image)
    assert float(levels.min()) > -1e-3
    assert float(levels.max()) < 255 + 1e-3


# Building, saving, training.


def test_a_whole_model_is_saved_and_loaded(tmp_path: Path) -> None:
    """Members of four families on three grids; bit for bit, from the folder alone."""
    members = THREE | {"three": {"name": "hf_vision", "model": DINOV3, "sources": ["layer_1", "last"]}}
    model = whole_model({"name": "ensemble", "members": members}, fusion="token_concat")
    model.save_pretrained(tmp_path)
    loaded = FlorenceVLForConditionalGeneration.from_pretrained(tmp_path).eval()
    expected, found = dict(named_tensors(model)), dict(named_tensors(loaded))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert loaded.image_spec == model.image_spec
    images = pixels(2, size=24)
    assert torch.equal(loaded.get_image_features(images)[0], model.get_image_features(images)[0])


def test_each_member_has_its_own_checkpoint(tmp_path: Path) -> None:
    weights = {}
    for name, seed in (("one", 1), ("two", 2)):
        torch.manual_seed(seed)
        tower = AutoModel.from_config(AutoConfig.for_model(**DINOV2))
        tower.save_pretrained(tmp_path / name)
        weights[name] = tower.embeddings.cls_token
    normalisation = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    encoder = ensemble_of(
        **{name: {"name": "hf_vision", "pretrained": str(tmp_path / name), **normalisation} for name in weights}
    )
    encoder.load_pretrained()
    for name, weight in weights.items():
        assert torch.equal(encoder.members[name].tower.embeddings.cls_token, weight)


def test_frozen_and_trained_within_a_model() -> None:
    for mode in (True, False):
        model = whole_model({"name": "ensemble", "members": THREE})
        model.encoder.requires_grad_(mode)
        model.get_image_features(pixels(2, size=24))[0].square().sum().backward()
        got = {name.split(".")[1] for name, p in model.encoder.named_parameters() if p.grad is not None}
        assert got == (set(THREE) if mode else set())


def test_an_ensemble_may_hold_an_ensemble() -> None:
    encoder = ensemble_of(outer={"name": "ensemble", "members": {"clip": CLIP_2}}, clip=CLIP_2)
    assert list(encoder.specs) == ["outer_clip_layer_2", "clip_layer_2"]
    same = encoder.members["clip"].state_dict()
    encoder.members["outer"].members["clip"].load_state_dict(same)
    with torch.no_grad():
        sources = encoder(pixels(1))
    assert torch.equal(sources["outer_clip_layer_2"], sources["clip_layer_2"])


# In YAML.

FILE = """
encoder:
  name: ensemble
  members:
    clip: {name: hf_vision, model: {model_type: clip_vision_model, image_size: 32, patch_size: 4}}
    dino:
      name: hf_vision
      sources: [layer_1]
      model: {model_type: dinov2, image_size: 32, patch_size: 4}
"""


def loaded(tmp_path: Path, text: str, *words: str) -> Choice:
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(ExperimentConfig, path, words).encoder


def test_members_are_written_as_the_slot_is(tmp_path: Path) -> None:
    encoder = loaded(tmp_path, FILE, "encoder.members.clip.sources=[layer_2]")
    clip, dino = encoder.config.members["clip"], encoder.config.members["dino"]
    assert (clip.name, clip.config.sources, dino.config.sources) == ("hf_vision", ["layer_2"], ["layer_1"])
    resolved = EnsembleEncoder.resolve(encoder.config)
    assert EnsembleEncoder.resolve(resolved) == resolved
    assert choose("encoder", Choice("encoder", "ensemble", resolved).as_dict()).config == resolved


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("encoder.members.clip.sorces=[last]", "encoder.members.clip.sorces on the command line: unknown key 'sorces'"),
        ("encoder.members.clip=hf_visoin", "encoder.members.clip on the command line: unknown encoder 'hf_visoin'"),
        ("encoder.members.x={sources: [last]}", "encoder.members.x on the command line: expected a name or a mapping"),
        ("encoder.members.clip.prefix_tokens=yes", "encoder.members.clip.prefix_tokens on the command line: unknown"),
        ("encoder.member={}", "encoder.member on the command line: unknown key 'member', allowed: members, order;"),
    ],
)
def test_mistakes_in_a_file_are_found_as_it_is_read(tmp_path: Path, word: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, FILE, word)
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


# What is refused.


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({}, "encoder.members: it is empty, name at least one encoder"),
        ({"a.b": CLIP_2}, "encoder.members: 'a.b' cannot name a member, take letters, digits and _, a letter first"),
        ({"keys": CLIP_2}, "encoder.members: 'keys' cannot name a member"),
        ({"": CLIP_2}, "encoder.members: '' cannot name a member"),
        (
            {"a": {**CLIP_2, "sources": ["layer_9"]}},
            "encoder.members.a.sources: 'layer_9' is not one of last, layer_1 to layer_3, depth_1 to",
        ),
        ({"a": CLIP_2, "b": {"name": "hf_vision"}}, "encoder.members.b: give `pretrained` (hub id or folder) or"),
        ({"b": {**FLORENCE, "image_size": 1024}}, "encoder.members.b.image_size: 1024 px give a grid of 128 x 128"),
        ({"e": {"name": "ensemble", "members": {"x": {**CLIP_2, "image_size": 4}}}},
         "encoder.members.e.members.x.image_size: 4 px, but this tower has positions for 16 px only"),
        ({"a": {"name": "ensemble", "members": {"b": CLIP_2}}, "a_b": CLIP_2},
         "encoder.members: two sources would have the name a_b_layer_2; rename a member"),
    ],
)
def test_mistakes_say_which_member(members: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ensemble_of(**members)
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("order", [["a"], ["a", "b", "b"], ["a", "c"]])
def test_an_order_that_does_not_fit(order: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"encoder\.order: expected each of a, b once, found a"):
        encoder_of({"name": "ensemble", "members": {"a": CLIP_2, "b": CLIP_2}, "order": order})


def test_there_is_no_decoder_to_train(tmp_path: Path) -> None:
    config = experiment(tmp_path, "encoder_pretrain", "tasks")
    config.encoder = choose("encoder", {"name": "ensemble", "members": {"florence": FLORENCE}})
    with pytest.raises(ConfigError, match="encoder: ensemble has no decoder to train, take florence2"):
        EncoderPretrainStage.build(config)
