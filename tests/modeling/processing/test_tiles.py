"""A model whose images become tiles: its processor, generation with beams, and all of it saved and loaded."""

import io
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.encoding.conversation import ConversationEncoder
from datamodules.encoding.messages import with_sizes
from datamodules.images.tile_reader import TileReader
from datamodules.images.tiling import Tiles, Tiling
from datamodules.images.transforms import ImageReader
from fvl_lightning.core.errors import DataError
from fvl_lightning.evaluation.batched_answers import AskedPrompt, Asking, answer_prompts
from fvl_lightning.evaluation.metrics.base import Reference
from fvl_lightning.evaluation.robustness.variations import variations_of
from fvl_lightning.evaluation.tasks.config import TaskAnswer, TaskConfig, TaskData
from fvl_lightning.evaluation.tasks.question import QuestionSet, TaskQuestion
from fvl_lightning.evaluation.tasks.score import score_task
from fvl_lightning.inference.generation import Sampling, answer, encode
from fvl_lightning.lmms_eval.answers import generated
from fvl_lightning.lmms_eval.requests import EvalRequest
from fvl_lightning.modeling.build import LoadedModel, load_model
from fvl_lightning.modeling.conversion.export import card
from fvl_lightning.modeling.processing.image_processor import FlorenceVLImageProcessor
from fvl_lightning.modeling.processing.processor import FlorenceVLProcessor, make_processor
from tests.modeling.processing.test_processor import IDS, TEMPLATE, bare
from tests.tiny_models import IMAGE, LLAMA, PIXELS, TOKENS, tiny_model, tiny_tokenizer

SIZES = [(3 * PIXELS, PIXELS), (PIXELS, 2 * PIXELS), (1, 1), (33, 30)]
IMAGES = [np.random.default_rng(n).integers(0, 256, (h, w, 3), dtype=np.uint8) for n, (w, h) in enumerate(SIZES)]
TILES = Tiles(4, marks="tags")
TILING = Tiling(PIXELS, 4, marks="tags")


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    """A model whose answers depend on its images, and whose rows have room for many tiles."""
    changes = {"tie_word_embeddings": False, "initializer_range": 0.6, "max_position_embeddings": 256}
    model, tokenizer = tiny_model(7, llama=LLAMA | changes), tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return LoadedModel(model, tokenizer, make_processor(model.image_spec, tokenizer, "stretch", tiles=TILES))


def reader(loaded: LoadedModel) -> TileReader:
    return TileReader(ImageReader(replace(loaded.model.image_spec, tokens_per_image=0)), TILING)


def question(*images: int) -> list[dict[str, Any]]:
    shown = [{"type": "image", "image": IMAGES[n]} for n in images]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": "w5"}]}]


def test_ids_are_those_of_training_and_pixels_the_tiles(loaded: LoadedModel) -> None:
    ours, messages = loaded.processor, question(0, 2, 1)
    values = ours.apply_chat_template(messages, **IDS, add_generation_prompt=True)
    encoder = ConversationEncoder(ours.tokenizer, IMAGE, TOKENS, TILING)
    wanted = encoder.prompt(with_sizes(bare(messages), [SIZES[n] for n in (0, 2, 1)]))
    assert values["input_ids"] == [wanted]
    assert wanted.count(IMAGE) == TOKENS * (4 + 1 + 3)
    tiles = reader(loaded)
    assert torch.equal(values["pixel_values"], tiles.pixels([tiles.cut(IMAGES[n]) for n in (0, 2, 1)]))
    assert ours.apply_chat_template([messages], tokenize=True, return_tensors=None)[0].count(IMAGE) == TOKENS * 8
    text = ours.apply_chat_template(messages, add_generation_prompt=True)
    assert text.count("<image>") == 3, "of an image each; the call that reads the images expands them"
    again = ours(text=text, images=[IMAGES[n] for n in (0, 2, 1)], return_tensors=None)
    assert again["input_ids"] == [wanted]
    assert torch.equal(again["pixel_values"], values["pixel_values"])


def test_it_is_saved_with_its_tiles(loaded: LoadedModel, tmp_path: Path) -> None:
    loaded.model.save_pretrained(tmp_path)
    loaded.processor.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert again.processor.image_processor.tiles == asdict(TILES)
    assert FlorenceVLProcessor.from_pretrained(tmp_path).encoder.tiling == TILING
    prompts = [encode(one, question(1, 0)) for one in (loaded, again)]
    assert prompts[0].ids == prompts[1].ids
    logits = [
        one.model.eval()(torch.tensor([prompt.ids]), pixel_values=prompt.pixel_values).logits
        for one, prompt in zip((loaded, again), prompts, strict=True)
    ]
    assert torch.equal(*logits)
    assert f"{TOKENS} tokens per tile, and up to 5 tiles per image" in card(tmp_path, "mine", 1000)


@pytest.mark.parametrize("beams", [1, 2])
def test_a_batch_of_other_tiles_gives_the_answers_of_its_rows(loaded: LoadedModel, beams: int) -> None:
    prompts = [encode(loaded, question(*images)) for images in ((0,), (2,), (1, 3), ())]
    sampling = Sampling(max_tokens=5, beams=beams)
    together = answer(loaded, prompts, sampling)
    assert together == [answer(loaded, [prompt], sampling)[0] for prompt in prompts]
    assert len(set(together)) > 1


def test_an_image_is_encoded_once_whatever_its_tiles(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = [(0,), (2,), (1, 3), (), (0,), (3, 0)]
    prompts = [encode(loaded, question(*images)) for images in shown]
    alone = [answer(loaded, [prompt], Sampling(max_tokens=5))[0] for prompt in prompts]
    counts = [len(reader(loaded).cut(image).tiles) for image in IMAGES]
    asking = [
        AskedPrompt(prompt.ids, images, tiles=tuple(counts[n] for n in images))
        for prompt, images in zip(prompts, shown, strict=True)
    ]
    encoded, forward = [], loaded.model.encoder.forward
    monkeypatch.setattr(loaded.model.encoder, "forward", lambda pixels: encoded.append(len(pixels)) or forward(pixels))
    tiles = reader(loaded)
    found = answer_prompts(
        loaded, asking, lambda numbers: tiles.pixels([tiles.cut(IMAGES[n]) for n in numbers]), Asking(tokens=5)
    )
    assert found == alone
    assert encoded == [sum(counts)]


SHOWN = [(0,), (2,), (1, 3), (), (0,), (3, 0)]


class Pictures(QuestionSet):
    """The question w5 about each of SHOWN."""

    identity = "these"
    questions = [  # noqa: RUF012
        TaskQuestion(str(place), tuple(bare(question(*images))), images, Reference(("w6",), choices=("w6", "w7 w8")))
        for place, images in enumerate(SHOWN)
    ]

    def image(self, number: int) -> bytes:
        content = io.BytesIO()
        Image.fromarray(IMAGES[number]).save(content, "PNG")
        return content.getvalue()


def test_tasks_and_lmms_eval_show_the_tiles(loaded: LoadedModel) -> None:
    alone = [answer(loaded, [encode(loaded, question(*images))], Sampling(max_tokens=5))[0] for images in SHOWN]
    task = TaskConfig("T", TaskData(), answer=TaskAnswer(tokens=5))
    assert [sample.output for sample in score_task(loaded, task, Pictures(), Asking()).samples] == alone
    (blind,) = variations_of(["blind"], task)
    assert [s.output for s in score_task(loaded, task, Pictures(), Asking(), blind).samples] != alone
    asked = [EvalRequest("a", "w5", partial(question, *images), Sampling(max_tokens=5)) for images in SHOWN]
    assert generated(loaded, asked, 4, "32-true", False) == alone


@pytest.mark.parametrize(
    ("tiles", "sentence"),
    [
        ({"max": 65}, "expected max of 1 to 64"), ({"most": 4}, "expected the fields of data.tiles"),
        ({"marks": "lines"}, "marks of none or rows or tags"), (4, "expected the fields of data.tiles"),
        ({"max": "4"}, "expected max of 1 to 64"),
    ],
)  # fmt: skip
def test_damaged_tiles_are_refused_in_a_sentence(tiles: Any, sentence: str) -> None:
    size, colours = {"height": PIXELS, "width": PIXELS}, (0.5, 0.5, 0.5)
    with pytest.raises(DataError, match=sentence):
        FlorenceVLImageProcessor(size, colours, colours, tiles=tiles)
    with pytest.raises(DataError, match="cannot be combined"):
        FlorenceVLImageProcessor(size, colours, colours, scaled_decode=True, tiles={})
