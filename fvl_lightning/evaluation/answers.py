"""Answers generated to questions about images, with two controls: the image zeroed, another sample's image."""

import dataclasses
import hashlib
import json
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from datamodules.base import BatchData
from datamodules.encoding.questions import Question
from datamodules.storage.sample import spread
from fvl_lightning.core.device import autocast, fitting
from fvl_lightning.core.errors import DataError
from fvl_lightning.evaluation.kept_answers import KeptAnswers
from fvl_lightning.evaluation.metrics.base import KindScores, Reference
from fvl_lightning.evaluation.metrics.lookup import DEFAULT_METRIC, build_metric
from fvl_lightning.inference.generation import ANSWER_TOKENS, generate_texts
from fvl_lightning.modeling.build import BuiltModel
from fvl_lightning.training.distributed.process_group import Ranks
from fvl_lightning.training.feature_cache import pixel_identity
from fvl_lightning.training.feature_files import images_per_pass

QUESTIONS_PER_BATCH = 128
"""Questions answered in one batch; on a GPU fewer where its memory does not hold them."""

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


@torch.no_grad()
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
    data, split, ranks = scoring.data, scoring.split, scoring.ranks
    if not (all_questions := data.questions(split)):
        raise _no_questions(data, split)
    questions = asked_questions(scoring)
    samples = sorted({question.index for question in all_questions})
    # Shifted by half the samples: each sample gets the image of another one, always the same.
    other = dict(zip(samples, samples[len(samples) // 2 :] + samples[: len(samples) // 2], strict=True))
    shown = [other[question.index] if images == "shuffled" else question.index for question in questions]
    prompts = [data.encoder.prompt(question.prompt_messages) for question in questions]
    batches = _batches(scoring.built, questions, prompts)
    kept, identity = scoring.kept, ""
    if kept is not None:
        identity = _identity(scoring, images, shown, prompts, batches)

    def answer_own_share() -> dict[int, list[str]]:
        texts = kept.read(identity, [len(batch) for batch in batches]) if kept else {}
        done = sum(len(batches[number]) for number in texts)
        for number in range(ranks.rank, len(batches), ranks.world_size):
            if number not in texts:
                batch = batches[number]
                texts[number] = _answer(
                    scoring, images, [shown[place] for place in batch], [prompts[place] for place in batch]
                )
                if kept:
                    kept.add(identity, number, texts[number])
                done += len(batch)
                scoring.progress(SHOWN[images], done, len(questions))
        return texts

    found: dict[int, str] = {}
    for texts in ranks.gather(answer_own_share):
        for number, answers in texts.items():
            found |= zip(batches[number], answers, strict=True)
    return [Answer(question, found[place]) for place, question in enumerate(questions)]


def _identity(
    scoring: Scoring,
    images: Images,
    shown: Sequence[int],
    prompts: Sequence[Sequence[int]],
    batches: Sequence[Sequence[int]],
) -> str:
    """Returns a hash of all that makes the answers of the batches, except for the model."""
    data = scoring.data
    content = [data.split_hash(scoring.split, content=True), pixel_identity(data), list(map(len, batches))]
    digest = hashlib.sha256(json.dumps([images, scoring.precision, *content], sort_keys=True, default=str).encode())
    for index, prompt in zip(shown, prompts, strict=True):
        digest.update(array("q", [index, len(prompt), *prompt]).tobytes())
    return digest.hexdigest()[:16]


def _batches(
    built: BuiltModel, questions: Sequence[Question], prompts: Sequence[Sequence[int]]
) -> list[list[int]]:
    """Returns the places of the questions of each batch, the longest first, so that a batch has little padding.

    The questions of one image stay together, since the encoder is run once for all of them in a batch.
    """
    longest: dict[int, int] = {}
    for question, prompt in zip(questions, prompts, strict=True):
        longest[question.index] = max(longest.get(question.index, 0), len(prompt))
    order = sorted(
        range(len(questions)),
        key=lambda place: (-longest[questions[place].index], questions[place].index, -len(prompts[place])),
    )
    batches: list[list[int]] = []
    start = 0
    while start < len(order):
        rows = _rows_that_fit(built.model, longest[questions[order[start]].index])
        batches.append(order[start : start + rows])
        start += rows
    return batches


def _rows_that_fit(model: Any, tokens: int) -> int:
    """Returns the number of prompts of this many tokens that are answered in one batch.

    A row holds keys and values of all layers, the tensors of one layer, and the features of its image, all in float32.
    The model may be there a second time in bfloat16.
    """
    if model.device.type == "cpu":
        return QUESTIONS_PER_BATCH
    text = model.config.get_text_config()
    width, heads = text.hidden_size, getattr(text, "num_attention_heads", 1)
    inner = getattr(text, "intermediate_size", None) or 4 * width
    head_width = getattr(text, "head_dim", None) or width // heads
    cache = 2 * text.num_hidden_layers * head_width * (getattr(text, "num_key_value_heads", None) or heads)
    numbers = (tokens + ANSWER_TOKENS) * (cache + 6 * width + 3 * inner)
    numbers += sum(spec.tokens * spec.dim for spec in model.encoder.specs.values())
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return fitting(model.device, 4 * numbers, QUESTIONS_PER_BATCH, weights * 3 // 2)


def _answer(scoring: Scoring, images: Images, shown: Sequence[int], prompts: Sequence[Sequence[int]]) -> list[str]:
    """Generates the answers of one batch, to prompts about the images of the samples `shown`."""
    built, data, split = scoring.built, scoring.data, scoring.split
    model, distinct = built.model, sorted(set(shown))
    pixels = data.pixels(split, distinct).to(model.device, model.dtype)
    if pixels.shape[0] != len(distinct):
        where = f"split {split} ({data.store(split).shards[0]} ...)"
        raise DataError(f"{where}: only samples with exactly one image each can be scored")
    if images == "zeroed":
        pixels = torch.zeros_like(pixels)
    rows = torch.tensor([distinct.index(index) for index in shown], device=pixels.device)
    with autocast(model.device, scoring.precision):
        parts = pixels.split(images_per_pass(pixels, model.device, QUESTIONS_PER_BATCH))
        features = [model.encoder(part) for part in parts]
        sources: dict[str, Tensor] = {name: torch.cat([part[name] for part in features])[rows] for name in features[0]}
        return generate_texts(built, prompts, image_sources=sources)


def _no_questions(data: BatchData, split: str) -> DataError:
    where = f"split {split} ({data.store(split).shards[0]} ...)"
    return DataError(f"{where} has no questions to score: its records name no `kinds`")
