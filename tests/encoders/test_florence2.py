"""Florence-2's features, with a tower of two stages and prompts of three lengths."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.florence2_prompts import RELEASED_PROMPTS
from fvl_lightning.core.types import FeatureSpec
from fvl_lightning.encoders.florence2 import Florence2Encoder
from tests.tiny_models import (
    FLORENCE2,
    PAD,
    PROMPT_IDS,
    encoder_config,
    initialized,
    pixels,
    tiny_encoder,
    tiny_tokenizer,
)

FLOAT64 = 1e-10
TASKS = ["caption", "ocr", "grounding"]


def close(found: Tensor, wanted: Tensor, tolerance: float = FLOAT64) -> None:
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=0)


def sources_of(images: Tensor, **changes: Any) -> dict[str, Tensor]:
    """The features in float64; encoders of the same seed share their weights whatever their sources."""
    with torch.no_grad():
        return tiny_encoder(**changes).double()(images.double())


# Features.


@pytest.mark.parametrize("task", TASKS)
def test_prompts_together_are_prompts_alone(task: str) -> None:
    """The pads that make three prompts one batch change nothing."""
    images = pixels(3)
    together = sources_of(images, sources=["davit", *TASKS])
    alone = sources_of(images, sources=[task], prompt_ids={task: PROMPT_IDS[task]})
    close(alone[task], together[task])


def test_prompts_are_copied_to_a_device_once_and_serve_a_training_afterwards() -> None:
    encoder, images = tiny_encoder(), pixels(2)
    with torch.inference_mode():
        encoder(images)
    chosen = tuple(range(len(encoder.tasks)))
    assert encoder.prompts.on(images.device, chosen)[0] is encoder.prompts.on(images.device, chosen)[0]
    sum(features.sum() for features in encoder(images).values()).backward()
    assert encoder.text_encoder.embed_tokens.weight.grad.any()


@pytest.mark.parametrize("task", TASKS)
def test_attended_pads_are_words(task: str) -> None:
    """`attend`: a shorter prompt with its pads is a prompt that has the pads written in it."""
    images = pixels(2)
    written = PROMPT_IDS[task] + [PAD] * (6 - len(PROMPT_IDS[task]))
    together = sources_of(images, sources=TASKS, prompt_pads="attend")
    alone = sources_of(images, sources=[task], prompt_ids={task: written})
    close(alone[task], together[task])


def test_attending_to_pads_matters_to_shorter_prompts_only() -> None:
    images = pixels(2)
    attended = sources_of(images, sources=TASKS, prompt_pads="attend")
    masked = sources_of(images, sources=TASKS, prompt_pads="mask")
    close(attended["caption"], masked["caption"])
    for task in ("ocr", "grounding"):
        assert float((attended[task] - masked[task]).abs().max()) > 1e-3, task


def test_sources_come_in_the_order_of_the_configuration() -> None:
    order = ["ocr", "davit_stage_2", "caption", "davit", "davit_stage_1"]
    mixed, plain = sources_of(pixels(2), sources=order), sources_of(pixels(2), sources=sorted(order))
    assert list(mixed) == order
    for name in order:
        close(mixed[name], plain[name])
    close(mixed["davit"], sources_of(pixels(2), sources=["davit"])["davit"])


def test_specs_say_grids_and_widths() -> None:
    sources = ["davit", "davit_stage_1", "davit_stage_2", "ocr"]
    kept = tiny_encoder(sources=sources, pooled_token="keep").specs
    assert kept == {
        "davit": FeatureSpec(5, 16, (2, 2)),
        "davit_stage_1": FeatureSpec(17, 8, (4, 4)),
        "davit_stage_2": FeatureSpec(5, 16, (2, 2)),
        "ocr": FeatureSpec(5, 16, (2, 2)),
    }
    dropped = tiny_encoder(sources=sources).specs
    assert {name: (spec.tokens, spec.prefix) for name, spec in dropped.items()} == {
        "davit": (4, 0), "davit_stage_1": (16, 0), "davit_stage_2": (4, 0), "ocr": (4, 0)
    }


def test_a_stage_is_the_output_of_its_last_block() -> None:
    """Row-major, mean first; stage 2 has two blocks, so the first one's output is not it."""
    encoder = tiny_encoder(sources=["davit_stage_1", "davit_stage_2"], pooled_token="keep")
    seen: dict[str, Tensor] = {}
    for stage, blocks in enumerate(encoder.vision_tower.blocks, start=1):
        blocks[-1].register_forward_hook(lambda _, __, out, stage=stage: seen.update({f"davit_stage_{stage}": out}))
    with torch.no_grad():
        sources = encoder(pixels(2))
    for name, side in (("davit_stage_1", 4), ("davit_stage_2", 2)):
        image = seen[name]
        assert image.shape[2:] == (side, side)
        assert torch.equal(sources[name][:, 1 + side], image[:, :, 1, 0])
        assert torch.equal(sources[name][:, 1:], image.flatten(2).transpose(1, 2))
        close(sources[name][:, 0], image.mean((2, 3)), 1e-6)


def test_dropping_the_pooled_token_drops_the_first() -> None:
    sources = ["davit", "davit_stage_1", *TASKS]
    kept, dropped = sources_of(pixels(2), sources=sources, pooled_token="keep"), sources_of(pixels(2), sources=sources)
    for name in sources:
        assert torch.equal(kept[name][:, 1:], dropped[name])


def test_tower_and_text_encoder_run_once() -> None:
    encoder = tiny_encoder(sources=["davit", "davit_stage_1", *TASKS])
    calls: list[str] = []
    encoder.vision_tower.register_forward_hook(lambda *_: calls.append("tower"))
    encoder.text_encoder.register_forward_hook(lambda *_: calls.append("text"))
    encoder(pixels(2))
    assert calls == ["tower", "text"]


def test_prompts_mean_something() -> None:
    """Each prompt gives features of its own."""
    sources = sources_of(pixels(1), sources=TASKS)
    assert float((sources["caption"] - sources["ocr"]).abs().max()) > 1e-2
    assert float((sources["ocr"] - sources["grounding"]).abs().max()) > 1e-2


def test_without_prompts_no_tokenizer_is_needed() -> None:
    config = Florence2Encoder.Config(model=FLORENCE2, image_size=16, sources=["davit", "davit_stage_1"])
    encoder = initialized("encoder", Florence2Encoder(Florence2Encoder.resolve(config))).eval()
    assert encoder.tasks == ()
    close(encoder(pixels(2))["davit"], tiny_encoder()(pixels(2))["davit"], 0)


def test_from_scratch_options() -> None:
    assert not tiny_encoder(temporal_embedding=False).image_projector.visual_temporal_embed.pos_idx_to_embed.any()
    frames = tiny_encoder().image_projector.visual_temporal_embed
    # Frame 0, the only one an image has: sine 0 and cosine 1 in turn.
    assert frames.pos_idx_to_embed[0].tolist() == [0.0, 1.0] * (frames.embed_dim // 2)
    position = tiny_encoder(position_std=0.5).image_projector.image_position_embed
    for table in (position.row_embeddings.weight, position.column_embeddings.weight):
        assert 0.42 < float(table.detach().std()) < 0.58
    assert float(tiny_encoder().image_projector.image_position_embed.row_embeddings.weight.detach().std()) < 0.15


# Prompts.


def test_prompts_are_texts(tmp_path: Path) -> None:
    """Texts become ids with the tokenizer; one's own beside the released names, or over them."""
    tiny_tokenizer().save_pretrained(tmp_path)
    config = Florence2Encoder.Config(
        model={**FLORENCE2, "text_config": {k: v for k, v in FLORENCE2["text_config"].items() if k != "vocab_size"}},
        tokenizer=str(tmp_path),
        image_size=16,
        sources=["davit", "colour", "ocr"],
        prompts={"colour": "w4 w9 w5", "ocr": "w7"},
    )
    resolved = Florence2Encoder.resolve(config)
    assert resolved.prompt_ids == {"colour": [4, 9, 5], "ocr": [7]}
    assert resolved.model["text_config"]["vocab_size"] == len(tiny_tokenizer())
    assert Florence2Encoder.resolve(resolved) == resolved
    assert Florence2Encoder(resolved).tasks == ("colour", "ocr")


def test_ids_given_for_one_prompt_leave_the_others_to_the_tokenizer(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    config = encoder_config(
        sources=["caption", "ocr"], prompt_ids={"caption": [5, 6]}, prompts={"ocr": "w8"}, tokenizer=str(tmp_path)
    )
    assert Florence2Encoder.resolve(config).prompt_ids == {"caption": [5, 6], "ocr": [8]}


def test_the_released_prompts() -> None:
    """The released code's three, in its order; changing a text changes what the released weights mean."""
    assert list(RELEASED_PROMPTS.items()) == [
        ("caption", "Describe in detail what is shown in the image."),
        ("ocr", "What is the text in the image?"),
        ("grounding", "Locate the objects in the image, with their descriptions."),
    ]


# What is refused.


def refused(build: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        build()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image_size": 0}, "image_size: 0 px give a grid of 0 x 0"),
        ({"image_size": 1024}, "1024 px give a grid of 128 x 128, but the encoder supports 1 to 50"),
        ({"image_size": 48}, "48 px and the longest prompt give 43 tokens, but the text encoder supports 32"),
        ({"sources": ["davit", "davit_stage_3"]}, "'davit_stage_3', the tower has stages 1 to 2"),
        ({"sources": ["davit_stage_0"]}, "'davit_stage_0', the tower has stages 1 to 2"),
        (
            {"model": {**FLORENCE2, "vision_config": {**FLORENCE2["vision_config"], "projection_dim": 8}}},
            "projection_dim is 8 and text_config.d_model 16",
        ),
    ],
)
def test_sizes_that_do_not_fit(changes: dict[str, Any], says: str) -> None:
    refused(lambda: Florence2Encoder(encoder_config(**changes)), says)


def test_the_largest_size_that_fits() -> None:
    """40 px: a grid of 5 x 5, the pooled token and six of the longest prompt are 32 tokens, exactly what it holds."""
    encoder = tiny_encoder(image_size=40)
    assert encoder(pixels(1, size=40))["caption"].shape[1] == 25


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sources": ["davit", "captoin"]}, "'captoin' is neither a depth nor a prompt.*encoder.prompts.captoin"),
        ({"sources": ["davit", "ocr", "davit"]}, "named twice in davit, ocr, davit"),
        ({"sources": []}, "encoder.sources"),
        ({"prompt_ids": {}}, "encoder.tokenizer"),
        ({"prompt_ids": {}, "tokenizer": "/nowhere/tokenizer"}, "/nowhere/tokenizer could not be read"),
        ({"prompt_ids": {}, "model": {}, "pretrained": "/nowhere/model"}, "/nowhere/model could not be read"),
    ],
)
def test_sources_and_files_that_are_not_there(changes: dict[str, Any], says: str) -> None:
    refused(lambda: Florence2Encoder.resolve(encoder_config(**changes)), says)


def test_neither_sizes_nor_weights(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    refused(
        lambda: Florence2Encoder.resolve(encoder_config(model={}, tokenizer=str(tmp_path))), "`pretrained`.*`model`"
    )
