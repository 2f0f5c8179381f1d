"""Answers scored by kind, the prior beside them, and the two controls."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fvl_lightning.evaluation import answers as module
from fvl_lightning.evaluation.answers import Answer, answer_questions, prior_answers, score_answers
from fvl_lightning.evaluation.metrics.base import KindScores
from fvl_lightning.inference.generation import generate_texts, pad_left
from fvl_lightning.modeling.build import BuiltModel
from tests.tiny_models import BOS, EOS, IMAGE, PAD, TOKENS, pixels, tiny_model, tiny_tokenizer


@dataclass(frozen=True)
class Question:
    """What scoring asks of a question."""

    kind: str
    answer: str
    index: int = 0
    prompt_messages: tuple[str, ...] = ()


def scores(answers: list[Answer]) -> KindScores:
    return score_answers(answers, "accuracy")


# The prior.


def test_the_prior_says_the_most_frequent_answer_of_the_kind() -> None:
    seen = [Question("colour", text) for text in ("red", "blue", "blue")] + [Question("count", "2")]
    asked = [Question("colour", "red"), Question("colour", "blue"), Question("count", "2"), Question("word", "cat")]
    found = prior_answers(asked, seen)
    assert [answer.text for answer in found] == ["blue", "blue", "2", ""]
    assert [answer.question for answer in found] == asked
    assert scores(found).by_kind == {"colour": 0.5, "count": 1.0, "word": 0.0}


@pytest.mark.parametrize("order", [("red", "blue", "green"), ("green", "red", "blue"), ("blue", "green", "red")])
def test_ties_go_to_the_first_in_the_alphabet(order: tuple[str, ...]) -> None:
    seen = [Question("colour", text) for text in (*order, *order)]
    (answer,) = prior_answers([Question("colour", "green")], seen)
    assert answer.text == "blue"


# Generation.


def test_left_padding() -> None:
    ids, mask = pad_left([[5, 6, 7], [8]], 0, torch.device("cpu"))
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_texts_hold_what_was_generated_and_no_more() -> None:
    """Words alone: neither the prompt, nor special tokens, nor what stands behind the end."""
    built = BuiltModel(tiny_model(), tiny_tokenizer())
    script = iter([[20, 21], [22, EOS], [EOS, 30]])

    def next_words(hidden: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor(next(script)), 40).float().unsqueeze(1)

    built.model.language_model.logits = next_words
    place = [IMAGE] * TOKENS
    texts = generate_texts(built, [[BOS, *place, 7, 8], [BOS, *place]], max_tokens=5, pixel_values=pixels(2))
    assert texts == ["w20 w22", "w21"]
    assert built.tokenizer.pad_token_id == PAD


class StubData:
    """Samples 3, 5, 6 and 8, the image of each filled with its number."""

    questions_asked = [  # noqa: RUF012
        Question("number", str(index), index, (f"what is {index}?",)) for index in (3, 3, 5, 6, 8)
    ]
    encoder = SimpleNamespace(prompt=lambda messages: list(messages))

    def questions(self, split: str) -> list[Question]:
        assert split == "test"
        return self.questions_asked

    def pixels(self, split: str, indices: list[int]) -> Tensor:
        return torch.tensor(indices).float().view(-1, 1, 1, 1).expand(-1, 3, 2, 2)


@pytest.fixture
def seeing(monkeypatch: pytest.MonkeyPatch) -> BuiltModel:
    """A model that says the number its image is filled with, two questions at a time."""

    def say(built: Any, prompts: list[Any], image_sources: dict[str, Tensor]) -> list[str]:
        assert len(prompts) <= 2
        return [str(int(value)) for value in image_sources["davit"]]

    monkeypatch.setattr(module, "generate_texts", say)
    monkeypatch.setattr(module, "QUESTIONS_PER_BATCH", 2)
    model = SimpleNamespace(
        device=torch.device("cpu"), encoder=lambda images: {"davit": images.mean((1, 2, 3))}
    )
    return BuiltModel(model, None)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ("real", ["3", "3", "5", "6", "8"]),
        ("zeroed", ["0", "0", "0", "0", "0"]),
        ("shuffled", ["6", "6", "8", "3", "5"]),
    ],
)
def test_what_each_question_is_shown(seeing: BuiltModel, images: Any, said: list[str]) -> None:
    """Its own image, none, or always the same one of another sample."""
    seen: list[tuple[int, int]] = []
    found = answer_questions(seeing, StubData(), "test", images, lambda *counts: seen.append(counts))
    assert [answer.question for answer in found] == StubData.questions_asked
    assert [answer.text for answer in found] == said
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert scores(found).overall == (1.0 if images == "real" else 0.0)
