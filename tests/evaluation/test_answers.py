"""Answers scored by kind, the prior beside them, and the two controls."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fvl_lightning.core.types import FeatureSpec
from fvl_lightning.evaluation import batched_answers as module
from fvl_lightning.evaluation.answers import Answer, Scoring, answer_questions, prior_answers, score_answers
from fvl_lightning.evaluation.kept_answers import KeptAnswers, remove_kept
from fvl_lightning.evaluation.metrics.base import KindScores
from fvl_lightning.inference.generation import ANSWER_TOKENS, generate_texts, pad_left
from fvl_lightning.modeling.build import BuiltModel
from tests.thread_ranks import on_ranks
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


def test_a_rank_scores_all_answers_without_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchmetrics would wait for ranks that score nothing, and count the answers once per rank."""
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    assert scores([Answer(Question("count", "2"), "2"), Answer(Question("count", "2"), "3")]).macro == 0.5


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
    encoder = SimpleNamespace(prompt=lambda messages: list(messages), question=lambda messages: [])
    reader = SimpleNamespace(identity=lambda: {"fit": "stretch"}, tiling=None)
    content = "these"

    def split_hash(self, split: str, content: bool) -> str:
        assert content
        return self.content

    def questions(self, split: str) -> list[Question]:
        assert split == "test"
        return self.questions_asked

    def tile_counts(self, split: str, index: int) -> list[int]:
        return [1]

    def sized(self, split: str, index: int, messages: Any) -> Any:
        return messages

    def pixels(self, split: str, indices: list[int]) -> Tensor:
        return torch.tensor(indices).float().view(-1, 1, 1, 1).expand(-1, 3, 2, 2)


@pytest.fixture
def seeing(monkeypatch: pytest.MonkeyPatch) -> BuiltModel:
    """A model that says the number its image is filled with, two questions at a time.

    Its tokenizer is a list of the lengths of the prompts of each batch that was answered.
    """

    def say(built: Any, prompts: list[Any], tokens: int, stop: Any, image_sources: dict[str, Tensor]) -> list[str]:
        assert len(prompts) <= 2
        assert (tokens, stop) == (ANSWER_TOKENS, ())
        built.tokenizer.append(list(map(len, prompts)))
        return [str(int(value)) for value in image_sources["davit"]]

    monkeypatch.setattr(module, "generate_texts", say)
    monkeypatch.setattr(module, "QUESTIONS_PER_BATCH", 2)
    model = SimpleNamespace(
        conditioned=False,
        device=torch.device("cpu"),
        dtype=torch.float32,
        encoder=lambda images: {"davit": images.mean((1, 2, 3))},
        config=SimpleNamespace(get_text_config=SimpleNamespace),
    )
    return BuiltModel(model, [])


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
    found = answer_questions(Scoring(seeing, StubData(), progress=lambda shown, *counts: seen.append(counts)), images)
    assert [answer.question for answer in found] == StubData.questions_asked
    assert [answer.text for answer in found] == said
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert scores(found).overall == (1.0 if images == "real" else 0.0)


class Lengths(StubData):
    """Five questions with prompts of other lengths, as many tokens as the second number; sample 5 has two."""

    questions_asked = [  # noqa: RUF012
        Question("number", str(index), index, (7,) * length)
        for index, length in ((3, 4), (5, 2), (5, 9), (6, 5), (8, 8))
    ]


def texts(found: list[Answer]) -> list[str]:
    return [answer.text for answer in found]


def test_the_longest_prompts_come_first_and_those_of_an_image_together(seeing: BuiltModel) -> None:
    found = answer_questions(Scoring(seeing, Lengths()))
    assert [answer.question for answer in found] == Lengths.questions_asked
    assert texts(found) == ["3", "5", "5", "6", "8"]
    assert seeing.tokenizer == [[9, 2], [8, 5], [4]]


@pytest.mark.parametrize("count", [2, 5])
def test_ranks_answer_the_same_batches_as_one(seeing: BuiltModel, count: int) -> None:
    found = on_ranks(count, lambda ranks: texts(answer_questions(Scoring(seeing, Lengths(), ranks=ranks))))
    assert found == [["3", "5", "5", "6", "8"]] * count
    assert sorted(seeing.tokenizer) == [[4], [8, 5], [9, 2]]


def test_a_scoring_that_was_stopped_goes_on(
    seeing: BuiltModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the batches of the start that was stopped, on another number of ranks, and whatever its last line is."""
    say = module.generate_texts

    def stop(built: Any, *args: Any, **inputs: Any) -> list[str]:
        if len(built.tokenizer) == 2:
            raise KeyboardInterrupt
        return say(built, *args, **inputs)

    monkeypatch.setattr(module, "generate_texts", stop)
    with pytest.raises(KeyboardInterrupt):
        answer_questions(Scoring(seeing, Lengths(), kept=KeptAnswers(tmp_path, "model", 1)))
    with (tmp_path / "answers-1.jsonl").open("a") as file:
        file.write('{"model": "model", "of": "')
    monkeypatch.setattr(module, "generate_texts", say)
    seeing.tokenizer.clear()
    found = on_ranks(
        2,
        lambda ranks: texts(
            answer_questions(Scoring(seeing, Lengths(), ranks=ranks, kept=KeptAnswers(tmp_path, "model", ranks.rank)))
        ),
    )
    assert found == [["3", "5", "5", "6", "8"]] * 2
    assert seeing.tokenizer == [[4]]
    remove_kept(tmp_path)
    assert not list(tmp_path.iterdir())


def test_kept_answers_are_those_of_the_same_model_questions_and_precision(seeing: BuiltModel, tmp_path: Path) -> None:
    class Other(Lengths):
        content = "other shards under the same names"

    def batches(images: Any = "real", model: str = "model", data: Any = None, **changes: Any) -> int:
        seeing.tokenizer.clear()
        answer_questions(Scoring(seeing, data or Lengths(), kept=KeptAnswers(tmp_path, model), **changes), images)
        return len(seeing.tokenizer)

    assert (batches(), batches()) == (3, 0)
    assert (batches("zeroed"), batches("shuffled"), batches("shuffled")) == (3, 3, 0)
    assert batches(precision="bf16-mixed") == batches(model="other") == batches(data=Other()) == 3
    assert batches(limit=3) == 2
    assert batches(metric="another") == 0, "the metric makes no answers"


def test_rows_that_fit_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the size of its memory: fewer of longer prompts, one at least, and never more than on a CPU."""
    text = SimpleNamespace(hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4)
    text.num_key_value_heads = 1
    model = SimpleNamespace(
        device=torch.device("cuda", 0), config=SimpleNamespace(get_text_config=lambda: text),
        encoder=SimpleNamespace(specs={"davit": FeatureSpec(10, 4, None)}), parameters=lambda: [torch.zeros(100)],
    )  # fmt: skip

    def rows(memory: int, tokens: int) -> int:
        monkeypatch.setattr("fvl_lightning.core.device.device_bytes", lambda device: memory)
        return module.rows_that_fit(model, tokens)

    row = 4 * ((4 + 16) * (2 * 2 * 2 + 6 * 8 + 3 * 16) + 10 * 4)
    assert rows(int((600 + 10 * row + 100) / 0.7), 4) == 10
    assert rows(int((600 + 10 * row + 100) / 0.7), 24) == 5
    assert rows(700, 4) == 1
    assert rows(10**12, 4) == module.QUESTIONS_PER_BATCH
