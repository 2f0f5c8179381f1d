"""Answers generated to questions about images, with two controls: the image zeroed, another sample's image."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from datamodules.base import BatchData
from datamodules.encoding.questions import Question
from datamodules.storage.sample import spread
from fvl_lightning.core.errors import DataError
from fvl_lightning.evaluation.metrics.base import KindScores
from fvl_lightning.evaluation.metrics.names import build_metric
from fvl_lightning.inference.generation import generate_texts
from fvl_lightning.modeling.build import BuiltModel

QUESTIONS_PER_BATCH = 128
"""Questions answered in one batch."""

Images = Literal["real", "zeroed", "shuffled"]


@dataclass(frozen=True)
class Answer:
    """A question with the answer that was generated to it."""

    question: Question
    text: str


def scored_questions(data: BatchData, split: str) -> list[Question]:
    """Returns the questions of a split, once it is clear that answers to them can be generated and scored.

    Raises:
        DataError: there is no such split, it has no questions, a question has no answer, or a sample with questions
            has no image or several.
    """
    questions = data.questions(split)
    if not questions:
        raise _no_questions(data, split)
    store = data.store(split)
    for question in questions:
        if (images := store.image_count(question.index)) != 1:
            raise store.error(question.index, "images", f"only samples with exactly one can be scored, it has {images}")
        if not question.answer.strip():
            raise store.error(question.index, "answers", f"the answer to a question of kind {question.kind} is empty")
    return questions


def score_answers(answers: Iterable[Answer], metric: str) -> KindScores:
    """Returns the scores of the answers by a registered metric."""
    answers = list(answers)
    computed = build_metric(metric, {answer.question.kind for answer in answers})
    for answer in answers:
        computed.update(answer.question.kind, answer.text, answer.question.answer)
    return computed.compute()


def prior_answers(asked: Sequence[Question], seen: Sequence[Question]) -> list[Answer]:
    """Answers each question of `asked` with the most frequent answer of its kind among the questions `seen`."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for question in seen:
        counts[question.kind][question.answer] += 1
    # Ties go to the answer that is first in the alphabet, so that the prior does not depend on an order.
    prior = {kind: min(counter, key=lambda text: (-counter[text], text)) for kind, counter in counts.items()}
    return [Answer(question, prior.get(question.kind, "")) for question in asked]


def asked_questions(data: BatchData, split: str, limit: int | None = None) -> list[Question]:
    """Returns the questions of a split, or `limit` of them, spread evenly."""
    questions = data.questions(split)
    return questions if limit is None else [questions[i] for i in spread(len(questions), limit)]


@torch.no_grad()
def answer_questions(
    built: BuiltModel,
    data: BatchData,
    split: str,
    images: Images = "real",
    progress: Callable[[int, int], None] = lambda done, total: None,
    limit: int | None = None,
) -> list[Answer]:
    """Generates greedy answers to the questions of a split.

    Args:
        built: model and tokenizer.
        data: a connected data module.
        images: the real ones, all pixels zero, or each question with the image of another sample.
        progress: called with the number of questions answered and the number of all questions.
        limit: how many questions, spread evenly over the split; None for all.

    Raises:
        DataError: the split has no questions, or samples with several images.
    """
    questions = data.questions(split)
    if not questions:
        raise _no_questions(data, split)
    samples = sorted({question.index for question in questions})
    questions = asked_questions(data, split, limit)
    # Shifted by half the samples: each sample gets the image of another one, always the same.
    other = dict(zip(samples, samples[len(samples) // 2 :] + samples[: len(samples) // 2], strict=True))
    answers: list[Answer] = []
    for start in range(0, len(questions), QUESTIONS_PER_BATCH):
        batch = questions[start : start + QUESTIONS_PER_BATCH]
        shown = [other[question.index] if images == "shuffled" else question.index for question in batch]
        distinct = sorted(set(shown))
        pixels = data.pixels(split, distinct).to(built.model.device)
        if pixels.shape[0] != len(distinct):
            where = f"split {split} ({data.store(split).shards[0]} ...)"
            raise DataError(f"{where}: only samples with exactly one image each can be scored")
        if images == "zeroed":
            pixels = torch.zeros_like(pixels)
        rows = torch.tensor([distinct.index(index) for index in shown], device=pixels.device)
        sources = {name: source[rows] for name, source in built.model.encoder(pixels).items()}
        prompts = [data.encoder.prompt(question.prompt_messages) for question in batch]
        texts = generate_texts(built, prompts, image_sources=sources)
        answers += [Answer(question, text) for question, text in zip(batch, texts, strict=True)]
        progress(len(answers), len(questions))
    return answers


def _no_questions(data: BatchData, split: str) -> DataError:
    where = f"split {split} ({data.store(split).shards[0]} ...)"
    return DataError(f"{where} has no questions to score: its records name no `kinds`")
