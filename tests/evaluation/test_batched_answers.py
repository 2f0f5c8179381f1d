"""Batches give the answers of one prompt at a time: with several images or none, choices, and texts that stop."""

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fvl_lightning.core.errors import DataError
from fvl_lightning.evaluation import batched_answers as module
from fvl_lightning.evaluation.batched_answers import AskedPrompt, Asking, answer_prompts, batches_of, most_likely
from fvl_lightning.inference.generation import generate_texts, positions
from fvl_lightning.modeling.build import BuiltModel
from fvl_lightning.modeling.connector.alignment import AlignedSources
from tests.thread_ranks import on_ranks
from tests.tiny_models import BOS, IMAGE, LLAMA, TOKENS, pixels, tiny_model, tiny_tokenizer

PICTURE = [IMAGE] * TOKENS
PROMPTS = [
    AskedPrompt([BOS, *PICTURE, 7], (2,)),
    AskedPrompt([BOS, *PICTURE, 7, 8, 9], (2,)),
    AskedPrompt([BOS, *PICTURE, 8, *PICTURE, 9, 10], (0, 1)),
    AskedPrompt([BOS, *PICTURE, 8, *PICTURE, 9, 10], (1, 0)),
    AskedPrompt([BOS, 11, 12]),
    AskedPrompt([BOS, *PICTURE, 5], (0,)),
    AskedPrompt([BOS, *PICTURE, 5], (0,)),
]
TOKENS_OF_ANSWERS = 6


@pytest.fixture(scope="module")
def built() -> BuiltModel:
    """A model whose answers depend on its images."""
    llama = LLAMA | {"tie_word_embeddings": False, "initializer_range": 0.6}
    return BuiltModel(tiny_model(7, llama=llama), tiny_tokenizer())


def read_pixels(numbers: Sequence[int]) -> Tensor:
    assert len(set(numbers)) == len(numbers), "an image is encoded once"
    return pixels(3)[list(numbers)]


def answers(built: BuiltModel, prompts: Sequence[AskedPrompt] = PROMPTS, **asking: object) -> list[str]:
    settings = replace(Asking(tokens=TOKENS_OF_ANSWERS), **asking)
    return answer_prompts(built, prompts, read_pixels, settings)


@pytest.fixture(scope="module")
def alone(built: BuiltModel) -> list[str]:
    """Each prompt answered by itself, by transformers' generate."""
    with torch.no_grad():
        return [
            generate_texts(
                built, [prompt.ids], TOKENS_OF_ANSWERS,
                **({"pixel_values": pixels(3)[list(prompt.images)]} if prompt.images else {}),
            )[0]
            for prompt in PROMPTS
        ]  # fmt: skip


@pytest.mark.parametrize("rows", [1, 2, 16])
def test_a_batch_gives_the_answers_of_one_at_a_time(
    built: BuiltModel, alone: list[str], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert alone[2] != alone[3], "the order of the images makes a difference"
    monkeypatch.setattr(module, "QUESTIONS_PER_BATCH", rows)
    assert answers(built) == alone


@torch.no_grad()
def test_features_that_are_given_stand_for_the_pixels(built: BuiltModel, alone: list[str]) -> None:
    aligned = built.model.alignment(built.model.encoder(pixels(3)))
    shown: list[int] = []

    def features(numbers: Sequence[int]) -> AlignedSources:
        shown.extend(numbers)
        return AlignedSources({name: x[list(numbers)] for name, x in aligned.items()})

    def refuse(numbers: Sequence[int]) -> Tensor:
        raise AssertionError("pixels are read")

    asking = Asking(tokens=TOKENS_OF_ANSWERS, image_sources=features)
    assert answer_prompts(built, PROMPTS, refuse, asking) == alone
    assert sorted(shown) == [0, 1, 2], "once for all prompts of a batch"


def test_ranks_share_the_batches(built: BuiltModel, alone: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUESTIONS_PER_BATCH", 2)
    assert on_ranks(2, lambda ranks: answers(built, ranks=ranks)) == [alone, alone]


def test_a_prompt_that_leaves_little_room_does_not_shorten_the_others(built: BuiltModel, alone: list[str]) -> None:
    limit = positions(built)
    long = [AskedPrompt([BOS, *range(4, 14)] * 6)]
    long = [AskedPrompt(long[0].ids[: limit - 2])]
    found = answers(built, [*PROMPTS, *long])
    assert found[:-1] == alone
    assert len(found[-1].split()) <= 2
    assert [len(PROMPTS)] in batches_of(built, [*PROMPTS, *long], TOKENS_OF_ANSWERS)
    with pytest.raises(DataError, match=f"a prompt has {limit} tokens .* the model has {limit} positions"):
        answers(built, [AskedPrompt([BOS] * limit)])


def test_an_answer_is_cut_at_the_first_stop(built: BuiltModel, alone: list[str]) -> None:
    words = [text.split() for text in alone]
    stop = words[0][2]
    cut = [" ".join(line[: line.index(stop)]) if stop in line else " ".join(line) for line in words]
    assert cut != alone
    assert [text.strip() for text in answers(built, stop=(stop,))] == cut


def test_the_likeliest_choice_is_that_of_the_plain_forward_pass(built: BuiltModel) -> None:
    choices = ([20], [21, 22, 23], [24, 25])
    prompts = [replace(prompt, choices=choices) for prompt in PROMPTS]
    for prompt, output in zip(prompts, answers(built, prompts), strict=True):
        expected = []
        for choice in choices:
            images = {"pixel_values": pixels(3)[list(prompt.images)]} if prompt.images else {}
            with torch.no_grad():
                row = torch.tensor([[*prompt.ids, *choice]])
                (logits,) = built.model(row, use_cache=False, **images).logits.log_softmax(-1)
            places = range(len(prompt.ids) - 1, len(prompt.ids) + len(choice) - 1)
            expected.append(sum(float(logits[p, t]) for p, t in zip(places, choice, strict=True)) / len(choice))
        assert json.loads(output) == pytest.approx(expected, abs=1e-5)
        assert most_likely(output) == expected.index(max(expected))


def test_an_image_that_cannot_be_read_ends_the_answers(built: BuiltModel) -> None:
    def refuse(numbers: Sequence[int]) -> Tensor:
        raise DataError("image 2 is damaged")

    with pytest.raises(DataError, match="image 2 is damaged"):
        answer_prompts(built, PROMPTS, refuse, Asking())
