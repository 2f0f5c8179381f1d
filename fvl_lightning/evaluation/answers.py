"""Answers generated to questions about images, scored by kind, with two controls: the image zeroed, another image."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fvl_lightning.core.errors import DataError
from fvl_lightning.evaluation.metrics import KindAccuracy, normalised
from fvl_lightning.inference.generation import generate_texts
from fvl_lightning.modeling.build import BuiltModel

QUESTIONS_AT_ONCE = 128

Images = Literal["real", "zeroed", "shuffled"]


@dataclass(frozen=True)
class Answer:
    """What the model said to a question (a `datamodules` Question)."""

    question: Any
    text: str

    @property
    def right(self) -> bool:
        """Exact match after folding case and white space."""
        return normalised(self.text) == normalised(self.question.answer)


def accuracy(answers: Iterable[Answer]) -> dict[str, Any]:
    """{"macro", "overall", "by_kind"} of the answers."""
    answers = list(answers)
    metric = KindAccuracy({answer.question.kind for answer in answers})
    for answer in answers:
        metric.update(answer.question.kind, answer.right)
    return metric.compute()


def prior_answers(asked: Sequence[Any], seen: Sequence[Any]) -> list[Answer]:
    """What the most frequent answer of each kind among the questions `seen` in training says to those `asked`."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for question in seen:
        counts[question.kind][question.answer] += 1
    # Ties go to the answer first in the alphabet, so that the prior is a number and not a draw.
    prior = {kind: min(counter, key=lambda text: (-counter[text], text)) for kind, counter in counts.items()}
    return [Answer(question, prior.get(question.kind, "")) for question in asked]


@torch.no_grad()
def answer_questions(
    built: BuiltModel,
    data: Any,
    split: str,
    images: Images = "real",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Answer]:
    """Greedy answers to every question of a split.

    Args:
        built: model and tokenizer.
        data: a connected data module with `questions`, `pixels` and `encoder`.
        images: the real ones, all pixels zero, or each question with the image of another sample.
        progress: called with questions done and questions in all.
    """
    questions = data.questions(split)
    if not questions:
        where = f"split {split} ({data.store(split).shards[0]} ...)"
        raise DataError(f"{where} has no questions to score: its records name no `kinds`")
    samples = sorted({question.index for question in questions})
    # Half a turn: everybody gets an image of somebody else, always the same one.
    other = dict(zip(samples, samples[len(samples) // 2 :] + samples[: len(samples) // 2], strict=True))
    answers: list[Answer] = []
    for start in range(0, len(questions), QUESTIONS_AT_ONCE):
        batch = questions[start : start + QUESTIONS_AT_ONCE]
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


