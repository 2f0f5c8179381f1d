"""Answers requests of lmms-eval in batches of similar length; each image of a batch is encoded once."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from PIL import ImageFile
from torch import Tensor

from datamodules.encoding.messages import Message, check_messages, with_sizes
from datamodules.encoding.question_form import QuestionForm
from datamodules.images.tile_reader import TileReader
from datamodules.images.tiling import TiledImage
from fvl_lightning.core.device import autocast
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.terminal import progress_bar
from fvl_lightning.evaluation.batched_answers import AskedPrompt, Asking, answer_prompts, batches_of, encoded_images
from fvl_lightning.inference.likelihood import Continuation, answer_ids, continuation_log_likelihoods
from fvl_lightning.lmms_eval.requests import EvalRequest
from fvl_lightning.modeling.build import LoadedModel
from fvl_lightning.modeling.processing.image_processor import cut_picture, pictures_of


class BatchImages:
    """The distinct images of a batch, numbered in the order in which they come."""

    def __init__(self, reader: TileReader) -> None:
        self._reader = reader
        self._images: list[TiledImage] = []
        self._numbers: dict[bytes, int] = {}

    def number(self, picture: Any) -> int:
        """Returns the number of an image; equal images have the same. DataError where it cannot be read."""
        with _whole_images():
            image = cut_picture(picture, self._reader)
        # Images of other sizes may have equal tiles, but other grids.
        size = str(image.size) if self._reader.tiling else ""
        digest = hashlib.sha256(size.encode() + image.tiles.tobytes()).digest()
        number = self._numbers.setdefault(digest, len(self._images))
        if number == len(self._images):
            self._images.append(image)
        return number

    def __getitem__(self, number: int) -> TiledImage:
        return self._images[number]

    def pixels(self, numbers: Sequence[int]) -> Tensor:
        """Returns the pixels [I, 3, P, P] of the images with these numbers, or of their tiles."""
        return self._reader.pixels([self._images[number] for number in numbers])


def generated(loaded: LoadedModel, requests: Sequence[EvalRequest], size: int, precision: str, show: bool) -> list[str]:
    """Returns a text for each request, in their order.

    Args:
        loaded: the model.
        requests: the requests.
        size: the most requests in a batch.
        precision: 32-true or bf16-mixed.
        show: whether a progress bar is shown.

    Raises:
        DataError: a message or an image cannot be read, or a prompt leaves no room for an answer.
    """
    answers: dict[int, str] = {}
    for places in _batches(requests, size, show):
        first = requests[places[0]]
        images = BatchImages(loaded.processor.image_processor.reader)
        prompts = [_prompt(loaded, requests[place], images)[0] for place in places]
        asking = Asking(
            precision=precision,
            tokens=first.sampling.max_tokens,
            stop=first.stop,
            sampling=first.sampling.generate_arguments,
        )
        answers |= zip(places, answer_prompts(loaded, prompts, images.pixels, asking), strict=True)
    return [answers[place] for place in range(len(requests))]


@torch.no_grad()
def likelihoods(
    loaded: LoadedModel, requests: Sequence[EvalRequest], size: int, precision: str, show: bool
) -> list[Continuation]:
    """Returns the log-likelihood of each request's continuation, with the end of an answer, in their order.

    For arguments and errors see `generated`.
    """
    found: dict[int, Continuation] = {}
    for places in _batches(requests, size, show):
        images = BatchImages(loaded.processor.image_processor.reader)
        prompts = [_choice_prompt(loaded, requests[place], images) for place in places]
        for batch in batches_of(loaded, prompts, max(len(prompt.choices[0]) for prompt in prompts)):
            asked = [prompts[number] for number in batch]
            distinct = sorted({image for prompt in asked for image in prompt.images})
            pixels = images.pixels(distinct) if distinct else None
            with autocast(loaded.model.device, precision):
                scored = continuation_log_likelihoods(
                    loaded,
                    [prompt.ids for prompt in asked],
                    [prompt.choices[0] for prompt in asked],
                    **encoded_images(loaded, asked, pixels),
                )
            found |= zip([places[number] for number in batch], scored, strict=True)
    return [found[place] for place in range(len(requests))]


def _hidden(done: int) -> None:
    """Shows no progress."""


@contextmanager
def _whole_images() -> Iterator[None]:
    """Refuses truncated images within the context; lmms-eval lets Pillow fill them with grey."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _batches(requests: Sequence[EvalRequest], size: int, show: bool) -> Iterator[list[int]]:
    """Yields batches of indices of requests with equal decoding settings, the longest first.

    Requests of equal length are sorted by document, so that a batch encodes its images once.
    """
    settings = list(dict.fromkeys((request.sampling, request.stop) for request in requests))
    with progress_bar("answering", len(requests)) if show else nullcontext(_hidden) as advance:
        for setting in settings:
            places = [place for place, request in enumerate(requests) if (request.sampling, request.stop) == setting]
            places.sort(key=lambda place: (-len(requests[place].text), requests[place].place))
            for start in range(0, len(places), size):
                yield places[start : start + size]
                advance(len(places[start : start + size]))


def _prompt(loaded: LoadedModel, request: EvalRequest, images: BatchImages) -> tuple[AskedPrompt, list[Message]]:
    """Returns the prompt of a request, and its messages in the format of training."""
    try:
        messages = request.messages()
        if problem := check_messages(messages):
            raise DataError(problem)
        messages = QuestionForm.read(loaded.processor.asking).apply(messages)
        numbers = tuple(images.number(picture) for picture in pictures_of(messages))
        shown = [images[number] for number in numbers]
        messages = with_sizes(messages, [image.size for image in shown])
        encoder, tiles = loaded.processor.encoder, tuple(len(image.tiles) for image in shown)
        prompt = AskedPrompt(encoder.prompt(messages), numbers, tiles=tiles, question=encoder.question(messages))
        return prompt, messages
    except DataError as error:
        raise DataError(f"{request.place}: {error}") from None


def _choice_prompt(loaded: LoadedModel, request: EvalRequest, images: BatchImages) -> AskedPrompt:
    prompt, messages = _prompt(loaded, request, images)
    choice = answer_ids(loaded.processor.encoder, messages, prompt.ids, request.continuation)
    return replace(prompt, choices=(choice,))
