"""Answers generated to questions about images, with two controls: the image zeroed, another sample's image."""

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from datamodules.base import BatchData
from datamodules.encoding.questions import Question
from datamodules.storage.sample import spread
from fvl_lightning.core.errors import DataError
from fvl_lightning.evaluation.batched_answers import AskedPrompt, Asking, ImageSources, answer_prompts
from fvl_lightning.evaluation.kept_answers import KeptAnswers
from fvl_lightning.evaluation.metrics.base import KindScores, Reference
from fvl_lightning.evaluation.metrics.lookup import DEFAULT_METRIC, build_metric
from fvl_lightning.modeling.build import BuiltModel
from fvl_lightning.training.distributed.process_group import Ranks
from fvl_lightning.training.feature_cache import pixel_identity

Images = Literal["real", "zeroed", "shuffled"]
SHOWN: dict[Images, str] = {"real": "images as they are", "zeroed": "images zeroed", "shuffled": "images shuffled"}
"""{images: the text for Progress}."""

Progress = Callable[[str, int, int], None]
"""Called with which images are shown, the number of questions answered, and the number of all questions."""


def _silent(images: str, done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Scoring:
    """A model, the questions that it answers, and how its answers are generated and scored."""

    built: BuiltModel
    """The model, on the device on which it answers, and its tokenizer."""
    data: BatchData
    """A data module that is connected to the model."""
    split: str = "test"
    """The split with the questions."""
    metric: str = DEFAULT_METRIC
    """The registered name of the metric."""
    limit: int | None = None
    """How many questions are asked, spread evenly over the split; None for all."""
    precision: str = "32-true"
    """32-true computes in the type of the weights, bf16-mixed in bfloat16."""
    ranks: Ranks = dataclasses.field(default_factory=Ranks)
    """The ranks that share the questions; each has the model and the data, and gets all answers."""
    kept: KeptAnswers | None = None
    """The place where the answers of finished batches are kept until the scores are written."""
    image_sources: ImageSources | None = None
    """The features that the images have, in place of the encoder's output for their pixels; answers are not kept."""
    progress: Progress = _silent


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
    for part in computed.modules():
        if isinstance(part, Metric):  # the rank has all answers: torchmetrics would add those of all ranks, and wait
            part.distributed_available_fn = lambda: False
    for answer in answers:
        computed.update(answer.question.kind, answer.text, Reference((answer.question.answer,)))
    return computed.compute()


def prior_answers(asked: Sequence[Question], seen: Sequence[Question]) -> list[Answer]:
    """Answers each question of `asked` with the most frequent answer of its kind among the questions `seen`."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for question in seen:
        counts[question.kind][question.answer] += 1
    # Ties go to the answer that is first in the alphabet, so that the prior does not depend on an order.
    prior = {kind: min(counter, key=lambda text: (-counter[text], text)) for kind, counter in counts.items()}
    return [Answer(question, prior.get(question.kind, "")) for question in asked]


def asked_questions(scoring: Scoring) -> list[Question]:
    """Returns the questions of the split, or `limit` of them, spread evenly."""
    questions, limit = scoring.data.questions(scoring.split), scoring.limit
    return questions if limit is None else [questions[i] for i in spread(len(questions), limit)]


def other_samples(samples: Collection[int]) -> dict[int, int]:
    """Returns {sample: another one, always the same}, shifted by half of the samples; a single one is its own."""
    own = sorted(samples)
    return dict(zip(own, own[len(own) // 2 :] + own[: len(own) // 2], strict=True))


def answer_questions(scoring: Scoring, images: Images = "real") -> list[Answer]:
    """Generates greedy answers to the questions of a split, and returns them in the order of the questions.

    The batches depend on the questions, the model and the kind of GPU alone. They are the same for any number of ranks,
    which take turns, and for a start that goes on with the answers of one that was stopped.

    Args:
        scoring: model, questions and ranks.
        images: the real ones, all pixels zero, or each question with the image of another sample.

    Raises:
        DataError: the split has no questions, or samples with several images.
        PeerFailedError: another rank has failed.
    """
    data, split = scoring.data, scoring.split
    if not (all_questions := data.questions(split)):
        raise _no_questions(data, split)
    questions = asked_questions(scoring)
    other = other_samples({question.index for question in all_questions})
    shown = [other[question.index] if images == "shuffled" else question.index for question in questions]
    tiles = {index: data.tile_counts(split, index) for index in set(shown)}
    if any(len(counts) != 1 for counts in tiles.values()):
        where = f"split {split} ({data.store(split).shards[0]} ...)"
        raise DataError(f"{where}: only samples with exactly one image each can be scored")
    prompts = [
        AskedPrompt(
            data.encoder.prompt(data.sized(split, index, question.prompt_messages)),
            (index,),
            tiles=(*tiles[index],),
            question=data.encoder.question(question.prompt_messages),
        )
        for question, index in zip(questions, shown, strict=True)
    ]

    def read_pixels(indices: Sequence[int]) -> Tensor:
        pixels = data.pixels(split, indices)
        return torch.zeros_like(pixels) if images == "zeroed" else pixels

    kept = scoring.kept if scoring.image_sources is None else None
    progress = partial(scoring.progress, SHOWN[images])
    asking = Asking(scoring.precision, scoring.ranks, kept, progress, image_sources=scoring.image_sources)
    content = [images, data.split_hash(split, content=True), pixel_identity(data)] if kept else []
    identity = json.dumps(content, sort_keys=True, default=str)
    texts = answer_prompts(scoring.built, prompts, read_pixels, asking, identity)
    return [Answer(question, text) for question, text in zip(questions, texts, strict=True)]


def _no_questions(data: BatchData, split: str) -> DataError:
    where = f"split {split} ({data.store(split).shards[0]} ...)"
    return DataError(f"{where} has no questions to score: its records name no `kinds`")
