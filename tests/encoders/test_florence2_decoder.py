"""Weights and decoder of transformers' own Florence-2: the same features and the same texts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Florence2Config, Florence2ForConditionalGeneration

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.types import IGNORE_INDEX
from fvl_lightning.encoders.florence2 import Florence2Encoder
from tests.tiny_models import FLORENCE2, PAD, PROMPT_IDS, initialized, pixels, prompted, tiny_encoder, tiny_tokenizer

FLOAT64 = 1e-10
TASKS = ["caption", "ocr", "grounding"]


def close(found: Tensor, wanted: Tensor, tolerance: float = FLOAT64) -> None:
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=0)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Florence2ForConditionalGeneration]:
    """A checkpoint with random weights as transformers saves one, its tokenizer beside it, and the model itself."""
    folder = tmp_path_factory.mktemp("florence2")
    torch.manual_seed(11)
    model = Florence2ForConditionalGeneration(Florence2Config(**FLORENCE2))
    with torch.no_grad():
        for layer in model.model.language_model.decoder.layers:
            for parameter in layer.parameters():
                parameter.mul_(8)  # else it says the last word again, whatever it sees
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder, model.double().eval()


def from_released(folder: Path, **changes: Any) -> Florence2Encoder:
    fields = {"pretrained": str(folder), "image_size": 16, "decoder": "keep", "pooled_token": "keep"} | changes
    config = Florence2Encoder.resolve(Florence2Encoder.Config(**fields))
    encoder = initialized("encoder", Florence2Encoder(config), seed=3)
    encoder.load_pretrained()
    return encoder.double().eval()


@torch.no_grad()
def test_features_and_decoder_are_transformers_own(released: tuple[Path, Florence2ForConditionalGeneration]) -> None:
    folder, theirs = released
    ours = from_released(folder, prompt_ids=PROMPT_IDS)
    images, targets = pixels(2).double(), prompted(2).targets
    features, logits = ours(images), ours.logits(ours.decode(images, targets))
    projected = theirs.get_image_features(images).pooler_output
    close(features["davit"], projected)
    for index, task in enumerate(TASKS):
        prompt = theirs.get_input_embeddings()(torch.tensor([PROMPT_IDS[task]] * 2))
        output = theirs(inputs_embeds=torch.cat([projected, prompt], dim=1), labels=targets[:, index].contiguous())
        close(features[task], output.encoder_last_hidden_state[:, : projected.shape[1]])
        close(logits[:, index], output.logits)


@torch.no_grad()
def test_teacher_forcing_shows_only_what_is_before(released: tuple[Path, Florence2ForConditionalGeneration]) -> None:
    ours = from_released(released[0], prompt_ids=PROMPT_IDS)
    images, targets = pixels(2).double(), prompted(2).targets
    changed = targets.clone()
    changed[:, :, 2] = 39
    one, other = ours.decode(images, targets), ours.decode(images, changed)
    close(one[:, :, :3], other[:, :, :3])
    assert float((one[:, :, 3] - other[:, :, 3]).abs().min(-1).values.max()) > 0


@torch.no_grad()
def test_a_task_of_short_targets_is_decoded_no_further(
    released: tuple[Path, Florence2ForConditionalGeneration]
) -> None:
    """Its states are those it has beside longer ones, and 0 behind; a task without any target is no error."""
    ours = from_released(released[0], prompt_ids=PROMPT_IDS)
    images, targets = pixels(2).double(), prompted(2).targets
    short = targets.clone()
    short[:, 1, 2:], short[:, 2] = IGNORE_INDEX, IGNORE_INDEX
    whole, cut = ours.decode(images, targets), ours.decode(images, short)
    close(cut[:, 0], whole[:, 0])
    close(cut[:, 1, :2], whole[:, 1, :2])
    assert not cut[:, 1, 2:].any()
    assert not cut[:, 2, 1:].any()


@torch.no_grad()
def test_writing_is_the_argmax_step_by_step(released: tuple[Path, Florence2ForConditionalGeneration]) -> None:
    ours = from_released(released[0], prompt_ids=PROMPT_IDS)
    ours.end_id = -1  # never ends, so that every step is compared
    images = pixels(2).double()
    written = ours.write(images, max_tokens=7)
    assert tuple(written.shape) == (2, 3, 7)
    forced = ours.logits(ours.decode(images, written)).argmax(-1)
    assert torch.equal(forced, written)
    assert written.unique().numel() > 3, "a model that repeats one word shows nothing"


@pytest.mark.parametrize("prompt_pads", ["mask", "attend"])
@pytest.mark.parametrize("chosen", [["ocr"], ["grounding", "caption"]])
@torch.no_grad()
def test_writing_under_some_prompts_is_what_is_written_under_all(
    released: tuple[Path, Florence2ForConditionalGeneration], chosen: list[str], prompt_pads: str
) -> None:
    """Prompts of unlike lengths; a shorter one alone keeps its pads, which `attend` makes part of it."""
    ours = from_released(released[0], prompt_ids=PROMPT_IDS, prompt_pads=prompt_pads)
    ours.end_id = -1
    images = pixels(2).double()
    rows: list[int] = []
    ours.text_encoder.register_forward_hook(lambda _, __, out: rows.append(len(out.last_hidden_state)))
    whole, some = ours.write(images, max_tokens=7), ours.write(images, 7, chosen)
    assert torch.equal(some, whole[:, [TASKS.index(task) for task in chosen]])
    assert rows == [2 * len(TASKS), 2 * len(chosen)], "only what is asked is computed"


@torch.no_grad()
def test_writing_stops_at_the_end(released: tuple[Path, Florence2ForConditionalGeneration]) -> None:
    """Pads after a row's end, and no step once all rows have ended."""
    ours = from_released(released[0], prompt_ids=PROMPT_IDS)
    images = pixels(2).double()
    ours.end_id = -1
    endless = ours.write(images, max_tokens=7).flatten(0, 1)
    ours.end_id = int(endless[0, 2])
    written = ours.write(images, max_tokens=7).flatten(0, 1)
    ends = [row.tolist().index(ours.end_id) if ours.end_id in row else 6 for row in endless]
    assert min(ends) <= 2
    assert written.shape[1] == max(ends) + 1
    for row, (free, end) in enumerate(zip(endless, ends, strict=True)):
        assert written[row, : end + 1].tolist() == free[: end + 1].tolist()
        assert set(written[row, end + 1 :].tolist()) <= {PAD}


def test_without_a_decoder_the_same_features(released: tuple[Path, Florence2ForConditionalGeneration]) -> None:
    kept, dropped = from_released(released[0]), from_released(released[0], decoder="drop")
    assert dropped.decoder is None
    assert not [name for name in dropped.state_dict() if name.startswith("decoder.")]
    for name, feature in kept(pixels(2).double()).items():
        assert torch.equal(feature, dropped(pixels(2).double())[name])
    with pytest.raises(ConfigError, match=r"^encoder\.decoder: it is drop, and only an encoder with decoder=keep"):
        dropped.write(pixels(2).double(), 4)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda t: t.add_tokens(["zebra"]), "has 40 rows, and none for 'zebra' with id 40"),
        (lambda t: t.add_special_tokens({"eos_token": "w9"}), "its texts end with token 9, the decoder's with 2"),
    ],
)
def test_a_tokenizer_that_the_decoder_cannot_write(edit: Any, says: str) -> None:
    """It would end nowhere, or the training with an index out of range."""
    encoder, tokenizer = tiny_encoder(decoder="keep"), tiny_tokenizer()
    encoder.check_tokenizer(tokenizer)
    edit(tokenizer)
    with pytest.raises(ConfigError, match=f"^encoder.tokenizer: .*{says}"):
        encoder.check_tokenizer(tokenizer)


def test_a_prompt_beyond_the_table() -> None:
    with pytest.raises(ConfigError, match="a prompt holds token 40, the encoder's token table has 40 rows"):
        tiny_encoder(prompt_ids=PROMPT_IDS | {"ocr": [1, 40, 2]})
