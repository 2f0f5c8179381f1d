"""Answers to many prompts: in batches of like length, with an image encoded once for all its prompts in a batch."""

import hashlib
import json
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate, repeat
from typing import Any

import torch
from torch import Tensor

from fvl_lightning.core.device import autocast, fitting
from fvl_lightning.core.errors import DataError
from fvl_lightning.evaluation.kept_answers import KeptAnswers
from fvl_lightning.inference.generation import ANSWER_TOKENS, generate_texts, positions, question_inputs
from fvl_lightning.inference.likelihood import continuation_log_likelihoods
from fvl_lightning.modeling.build import BuiltModel
from fvl_lightning.training.distributed.process_group import Ranks
from fvl_lightning.training.feature_files import images_per_pass

QUESTIONS_PER_BATCH = 128
"""Prompts answered in one batch; on a GPU fewer where its memory does not hold them."""

Progress = Callable[[int, int], None]
"""Called with the number of prompts that are answered, and the number of all."""
ReadPixels = Callable[[Sequence[int]], Tensor]
"""Numbers of images, no two of which are equal -> their pixels [I, 3, P, P], where I counts the tiles of images."""
ImageSources = Callable[[Sequence[int]], dict[str, Tensor]]
"""Numbers of images, as in ReadPixels -> their features {source: [I, N, D]}; called where the model computes."""


def _silent(done: int, total: int) -> None:
    pass


def _never() -> bool:
    return False


class StoppedAnswering(Exception):
    """Raised on all ranks where one of them was asked to stop."""


@dataclass(frozen=True)
class AskedPrompt:
    """A prompt, and in which way it is answered."""

    ids: Sequence[int]
    """Token ids, with the placeholders of its images."""
    images: tuple[int, ...] = ()
    """The numbers of its images, in the order of their placeholders."""
    choices: tuple[Sequence[int], ...] = ()
    """The token ids of possible answers. Where there are any, their log-likelihoods are the answer."""
    tiles: tuple[int, ...] = ()
    """The number of tiles of each of its images; empty where all of them have one."""
    question: Sequence[int] = ()
    """The token ids of the question, for a fusion that reads it."""

    @property
    def encoded(self) -> int:
        """Number of squares that the encoder gets."""
        return sum(self.tiles) if self.tiles else len(self.images)


@dataclass(frozen=True)
class Asking:
    """The way in which prompts are answered."""

    precision: str = "32-true"
    """32-true computes in the type of the weights, bf16-mixed in bfloat16."""
    ranks: Ranks = field(default_factory=Ranks)
    """The ranks that share the prompts; each has the model and the images, and gets all answers."""
    kept: KeptAnswers | None = None
    """The place where the answers of finished batches are kept until the scores are written."""
    progress: Progress = _silent
    tokens: int = ANSWER_TOKENS
    """Length limit of a generated answer."""
    stop: tuple[str, ...] = ()
    """Texts at which a generated answer is cut."""
    image_sources: ImageSources | None = None
    """The features of images, in place of the encoder's output for their pixels, which are then not read."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of transformers' generate, for another decoding than greedy."""
    reserved: int = 0
    """Bytes of the device besides the model that are taken, such as those of gradients and an optimiser."""
    stopped: Callable[[], bool] = _never
    """Asked before each batch; once it returns True, this rank answers no more."""


@torch.no_grad()
def answer_prompts(
    built: BuiltModel, prompts: Sequence[AskedPrompt], read_pixels: ReadPixels, asking: Asking, identity: str = ""
) -> list[str]:
    """Answers prompts, greedily unless `asking.sampling` says otherwise; the answers have the order of the prompts.

    The batches depend on the prompts, the model and the kind of GPU alone. They are the same for any number of ranks,
    which take turns, and for a start that goes on with the answers of one that was stopped.

    Args:
        built: the model, on the device on which it answers, and its tokenizer.
        prompts: the prompts.
        read_pixels: reads images; it is called from another thread, while the batch before is answered.
        asking: precision, ranks and so on.
        identity: names all that makes the answers except for the model and the prompts, such as the images.

    Returns:
        Generated texts. For a prompt with choices, a list of their log-likelihoods per token, in JSON.

    Raises:
        DataError: a prompt leaves no room for an answer.
        PeerFailedError: another rank has failed.
        StoppedAnswering: `asking.stopped` returned True on some rank.
    """
    for prompt in prompts:
        if len(prompt.ids) >= (limit := positions(built)):
            raise DataError(
                f"a prompt has {len(prompt.ids)} tokens with its images, the model has {limit} positions for prompt "
                "and answer"
            )
    batches, kept, ranks = batches_of(built, prompts, asking.tokens, asking.reserved), asking.kept, asking.ranks
    named = _identity(identity, prompts, batches, asking) if kept else ""

    def answer_own_share() -> dict[int, list[str]]:
        texts = kept.read(named, [len(batch) for batch in batches]) if kept else {}
        done = sum(len(batches[number]) for number in texts)
        own = [number for number in range(ranks.rank, len(batches), ranks.world_size) if number not in texts]
        shown = [() if asking.image_sources else [prompts[place] for place in batches[number]] for number in own]
        for number, pixels in zip(own, _read_ahead(list(map(_distinct_images, shown)), read_pixels), strict=True):
            if asking.stopped():
                break
            texts[number] = _answer(built, [prompts[place] for place in batches[number]], pixels, asking)
            if kept:
                kept.add(named, number, texts[number])
            done += len(batches[number])
            asking.progress(done, len(prompts))
        return texts

    found: dict[int, str] = {}
    for texts in ranks.gather(answer_own_share):
        for number, answers in texts.items():
            found |= zip(batches[number], answers, strict=True)
    if len(found) < len(prompts):
        raise StoppedAnswering
    return [found[place] for place in range(len(prompts))]


def batches_of(
    built: BuiltModel, prompts: Sequence[AskedPrompt], tokens: int = ANSWER_TOKENS, reserved: int = 0
) -> list[list[int]]:
    """Returns the places of the prompts of each batch, the longest first, so that a batch has little padding.

    The prompts about the same images stay together. A prompt that leaves less room than `tokens` for its answer has a
    batch of its own, since a batch generates only as many tokens as its longest prompt leaves room for.
    """
    longest: dict[tuple[int, ...], int] = {}
    for prompt in prompts:
        longest[prompt.images] = max(longest.get(prompt.images, 0), len(prompt.ids))
    order = sorted(
        range(len(prompts)),
        key=lambda place: (-longest[prompts[place].images], prompts[place].images, -len(prompts[place].ids)),
    )
    limit = positions(built) - tokens
    batches = [[place] for place in order if len(prompts[place].ids) > limit]
    order = [place for place in order if len(prompts[place].ids) <= limit]
    start = 0
    while start < len(order):
        first = prompts[order[start]]
        rows = rows_that_fit(built.model, longest[first.images], tokens, first.encoded, reserved)
        rows = max(1, rows // max(1, len(first.choices)))
        batches.append(order[start : start + rows])
        start += rows
    return batches


def rows_that_fit(
    model: Any, tokens: int, answer_tokens: int = ANSWER_TOKENS, images: int = 1, reserved: int = 0
) -> int:
    """Returns the number of prompts of this many tokens and images that are answered in one batch.

    A row holds keys and values of all layers, the tensors of one layer, and the features of its images, all in
    float32. The model may be there a second time in bfloat16. `reserved` is the number of bytes that are taken besides.
    """
    if model.device.type == "cpu":
        return QUESTIONS_PER_BATCH
    text = model.config.get_text_config()
    width, heads = text.hidden_size, getattr(text, "num_attention_heads", 1)
    inner = getattr(text, "intermediate_size", None) or 4 * width
    head_width = getattr(text, "head_dim", None) or width // heads
    cache = 2 * text.num_hidden_layers * head_width * (getattr(text, "num_key_value_heads", None) or heads)
    numbers = (tokens + answer_tokens) * (cache + 6 * width + 3 * inner)
    numbers += images * sum(spec.tokens * spec.dim for spec in model.encoder.specs.values())
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return fitting(model.device, 4 * numbers, QUESTIONS_PER_BATCH, weights * 3 // 2 + reserved)


def most_likely(output: str) -> int:
    """Returns the number of the choice with the highest log-likelihood per token in an answer to choices."""
    values: list[float] = json.loads(output)
    return max(range(len(values)), key=values.__getitem__)


def _identity(identity: str, prompts: Sequence[AskedPrompt], batches: Sequence[Sequence[int]], asking: Asking) -> str:
    """Returns a hash of all that makes the answers of the batches, except for the model."""
    made = [identity, asking.precision, asking.tokens, asking.stop, list(map(len, batches))]
    made += [dict(asking.sampling)] if asking.sampling else []
    digest = hashlib.sha256(json.dumps(made).encode())
    for prompt in prompts:
        for numbers in (prompt.images, prompt.ids, *prompt.choices):
            digest.update(array("q", [len(numbers), *numbers]).tobytes())
    return digest.hexdigest()[:16]


def _distinct_images(prompts: Iterable[AskedPrompt]) -> list[int]:
    return sorted({image for prompt in prompts for image in prompt.images})


def _read_ahead(images: Sequence[Sequence[int]], read_pixels: ReadPixels) -> Iterator[Tensor | None]:
    """Yields the pixels of each batch's images, None for a batch without images; the next one is read meanwhile."""
    with ThreadPoolExecutor(1) as reader:
        reading: deque[Future[Tensor] | None] = deque()
        for batch in images:
            reading.append(reader.submit(read_pixels, batch) if batch else None)
            if len(reading) > 1:
                yield _result(reading.popleft())
        yield from map(_result, reading)


def _result(reading: Future[Tensor] | None) -> Tensor | None:
    return None if reading is None else reading.result()


def _answer(built: BuiltModel, prompts: Sequence[AskedPrompt], pixels: Tensor | None, asking: Asking) -> list[str]:
    """Answers the prompts of one batch; `pixels` are those of its distinct images, in the order of their numbers."""
    with autocast(built.model.device, asking.precision):
        numbers = _distinct_images(prompts) if asking.image_sources else []
        images = asking.image_sources(numbers) if asking.image_sources and numbers else pixels
        if any(prompt.choices for prompt in prompts):
            return _likelihoods(built, prompts, images)
        room = positions(built) - max(len(prompt.ids) for prompt in prompts)
        ids, tokens = [prompt.ids for prompt in prompts], min(asking.tokens, room)
        inputs = {**encoded_images(built, prompts, images), **asking.sampling}
        return generate_texts(built, ids, tokens, asking.stop, **inputs)


def encoded_images(
    built: BuiltModel, prompts: Sequence[AskedPrompt], images: Tensor | dict[str, Tensor] | None
) -> dict[str, Any]:
    """Returns the features of the images of the prompts, prompt after prompt; each image is encoded once.

    Args:
        built: the model.
        prompts: the prompts.
        images: the distinct images in the order of their numbers: pixels [I, 3, P, P], or their features
            {source: [I, N, D]}, which keep their type.
    """
    if images is None:
        return {}
    distinct = _distinct_images(prompts)
    features = _features(built, images) if isinstance(images, Tensor) else images
    shown = [pair for prompt in prompts for pair in zip(prompt.images, prompt.tiles or repeat(1), strict=False)]
    tiles = dict(shown)
    starts = dict(zip(distinct, accumulate((tiles[image] for image in distinct), initial=0), strict=False))
    places = [starts[image] + tile for image, count in shown for tile in range(count)]
    rows = torch.tensor(places, device=next(iter(features.values())).device)
    asked = [prompt.question for prompt in prompts for _ in range(prompt.encoded)]
    sources = type(features)({name: source[rows] for name, source in features.items()})
    return {"image_sources": sources} | question_inputs(built, asked)


def _features(built: BuiltModel, pixels: Tensor) -> dict[str, Tensor]:
    """Returns the encoder's output {source: [I, N, D]} for pixels [I, 3, P, P]."""
    model = built.model
    pixels = pixels.to(model.device, model.dtype)
    parts = pixels.split(images_per_pass(pixels, model.device, QUESTIONS_PER_BATCH))
    features = [model.encoder(part) for part in parts]
    return {name: torch.cat([part[name] for part in features]) for name in features[0]}


def _likelihoods(
    built: BuiltModel, prompts: Sequence[AskedPrompt], images: Tensor | dict[str, Tensor] | None
) -> list[str]:
    """Returns the log-likelihoods per token of every prompt's choices, as JSON."""
    repeated = [prompt for prompt in prompts for _ in prompt.choices]
    choices = [choice for prompt in prompts for choice in prompt.choices]
    found = continuation_log_likelihoods(
        built, [prompt.ids for prompt in repeated], choices, **encoded_images(built, repeated, images)
    )
    values = iter([one.per_token for one in found])
    return [json.dumps([next(values) for _ in prompt.choices]) for prompt in prompts]
