"""Generates answers to messages with images: several at once, or one as a stream."""

import sys
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from datamodules.batching.collate import pad_questions
from datamodules.encoding.messages import Message, check_messages
from datamodules.images.decoding import refuse_many_pixels
from datamodules.images.limits import refuse_many_images
from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.modeling.build import BuiltModel, LoadedModel
from fvl_lightning.modeling.connector.alignment import AlignedSources
from fvl_lightning.modeling.processing.image_processor import pictures_of


@dataclass(frozen=True)
class Sampling:
    """Decoding settings."""

    max_tokens: int = 64
    """Maximum length of an answer in tokens."""
    temperature: float = 0.0
    """0 decodes greedily; above, tokens are sampled, more freely the higher it is."""
    top_p: float = 1.0
    """Nucleus sampling: tokens are sampled from the most likely ones whose probabilities add up to this."""
    beams: int = 1
    """Beams of beam search; 1 for none."""

    def __post_init__(self) -> None:
        for name, valid, allowed in (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1"),
            ("beams", self.beams >= 1, "at least 1"),
        ):
            if not valid:
                raise ConfigError(f"{name}: expected a number {allowed}, found {getattr(self, name)}")

    @property
    def generate_arguments(self) -> dict[str, Any]:
        """The arguments of transformers' generate."""
        if self.temperature == 0:
            return {"do_sample": False, "num_beams": self.beams}
        sampled = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return {"num_beams": self.beams, **sampled}


@dataclass(frozen=True)
class Prompt:
    """Messages as the model's input: S token ids, and their images [I, 3, P, P] or None."""

    ids: list[int]
    pixel_values: Tensor | None
    question: Sequence[int] = ()
    """The token ids of the question, for a fusion that reads it."""
    sources: AlignedSources | None = None
    """The features of the images, behind the alignment; where they are there, no pixels are encoded."""


def encode(loaded: LoadedModel, messages: Sequence[Message]) -> Prompt:
    """Encodes messages with a generation prompt; images stand in their content parts (see the processor).

    Raises:
        DataError: a message or an image that cannot be read, more images or pixels than are read together, or more
            tokens than the model has positions for.
    """
    if not check_messages(messages):  # the processor has the sentence for others
        pictures = pictures_of(messages)
        refuse_many_images(len(pictures))
        refuse_many_pixels([picture for picture in pictures if isinstance(picture, bytes | Path)])
    inputs = loaded.processor.apply_chat_template(
        [list(messages)], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors=None
    )
    (ids,) = inputs["input_ids"]
    limit = positions(loaded)
    if len(ids) >= limit:
        raise DataError(
            f"the prompt has {len(ids)} tokens with its images, the model has {limit} positions for prompt and answer"
        )
    asked = inputs.get("question_ids")  # the same for all images of a conversation
    return Prompt(ids, inputs.get("pixel_values"), () if asked is None else asked[0].tolist())


def positions(built: BuiltModel) -> int:
    """Returns the number of positions of the language model; sys.maxsize where it has no limit."""
    config = built.model.config.get_text_config()
    return config.max_position_embeddings if hasattr(config, "max_position_embeddings") else sys.maxsize


def answer(loaded: LoadedModel, prompts: Sequence[Prompt], sampling: Sampling) -> list[str]:
    """Returns the answer to each prompt; greedy in float32, a batch gives the same tokens as one prompt at a time."""
    room = positions(loaded) - max(len(prompt.ids) for prompt in prompts)
    if len(prompts) > 1 and room < sampling.max_tokens:  # the longest prompt would shorten the others' answers
        return [text for prompt in prompts for text in answer(loaded, [prompt], sampling)]
    ids = [prompt.ids for prompt in prompts]
    return generate_texts(
        loaded, ids, min(room, sampling.max_tokens), **_images(loaded, prompts), **sampling.generate_arguments
    )


def stream(loaded: LoadedModel, prompt: Prompt, sampling: Sampling) -> Generator[str]:
    """Yields an answer piece by piece as it is generated; closing the iterator stops generation at the next token.

    Raises:
        ConfigError: `sampling.beams` is above 1; the answer of a beam search is known at its end only.
    """
    if sampling.beams != 1:
        raise ConfigError(f"beams: a stream needs 1, not {sampling.beams}; use answer() for a beam search")
    streamer = TextIteratorStreamer(loaded.tokenizer, skip_prompt=True, skip_special_tokens=True)
    closed = Event()
    tokens = min(positions(loaded) - len(prompt.ids), sampling.max_tokens)

    def write() -> None:
        try:
            generate_texts(
                loaded,
                [prompt.ids],
                tokens,
                streamer=streamer,
                stopping_criteria=StoppingCriteriaList([_Closed(closed)]),
                **_images(loaded, [prompt]),
                **sampling.generate_arguments,
            )
        finally:
            streamer.end()  # without it, an error would leave the reader waiting

    with ThreadPoolExecutor(1) as writer:
        writing = writer.submit(write)
        try:
            yield from (piece for piece in streamer if piece)
            writing.result()
        finally:
            closed.set()


def user_message(pictures: list[Any], text: str) -> Message:
    """Returns a user message: the images first, then the text."""
    images = [{"type": "image", "image": picture} for picture in pictures]
    return {"role": "user", "content": [*images, {"type": "text", "text": text}]}


class _Closed(StoppingCriteria):
    """Stops generation once the stream is closed."""

    def __init__(self, closed: Event) -> None:
        self.closed = closed

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), self.closed.is_set(), device=input_ids.device)


class StopTexts(StoppingCriteria):
    """Stops a row once its answer contains one of some texts.

    transformers' own criterion (`stop_strings`) fails for tokenizers that do not know its probe word.

    Args:
        tokenizer: the model's.
        texts: the texts, none of them empty.
        prompt: number of tokens in front of the answers.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str], prompt: int) -> None:
        self.tokenizer, self.texts, self.prompt = tokenizer, texts, prompt
        # A text has at most a token per byte, and the token that ends it may begin before its last byte.
        self.tokens = max(len(text.encode()) for text in texts) + 1

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        last = input_ids[:, max(self.prompt, input_ids.shape[1] - self.tokens) :]
        ends = self.tokenizer.batch_decode(last, skip_special_tokens=True)
        stopped = [any(text in end for text in self.texts) for end in ends]
        return torch.tensor(stopped, device=input_ids.device)


def _images(loaded: LoadedModel, prompts: Sequence[Prompt]) -> dict[str, Any]:
    with_images = [(prompt.pixel_values, prompt.question) for prompt in prompts if prompt.pixel_values is not None]
    if not with_images:
        return {}
    inputs = question_inputs(loaded, [question for values, question in with_images for _ in values])
    sources = [prompt.sources for prompt in prompts if prompt.sources is not None]
    if len(sources) == len(with_images):
        joined = {name: torch.cat([source[name] for source in sources]) for name in sources[0]}
        return {"image_sources": AlignedSources(joined)} | inputs
    pixels = torch.cat([values for values, _ in with_images]).to(loaded.model.device, loaded.model.dtype)
    return {"pixel_values": pixels} | inputs


def question_inputs(built: BuiltModel, questions: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Returns the model's argument for the question about each image, token ids; none where its fusion reads none."""
    if not built.model.conditioned:
        return {}
    return {"question_ids": pad_questions(questions).to(built.model.device)}


ANSWER_TOKENS = 16
"""Default length limit of an answer in tokens, for short answers as in evaluation."""


def generate_texts(
    built: BuiltModel,
    prompts: Sequence[Sequence[int]],
    max_tokens: int = ANSWER_TOKENS,
    stop: Sequence[str] = (),
    **inputs: Any,
) -> list[str]:
    """Generates a text after each prompt (token ids, image placeholders expanded).

    An answer ends at an end token of the model's generation_config: the one that training ends answers with, or eos.

    Args:
        built: the model and its tokenizer.
        prompts: the prompts.
        max_tokens: length limit of an answer.
        stop: texts at which an answer is cut, in addition.
        inputs: arguments of transformers' generate: the images, and sampling settings (greedy without do_sample=True).
    """
    input_ids, mask = pad_left(prompts, built.tokenizer.pad_token_id, built.model.device)
    if stop:
        criteria = StopTexts(built.tokenizer, stop, input_ids.shape[1])
        inputs["stopping_criteria"] = StoppingCriteriaList([*inputs.get("stopping_criteria", ()), criteria])
    output_ids = built.model.generate(
        input_ids,
        attention_mask=mask,
        max_new_tokens=max_tokens,
        **{"do_sample": False} | inputs,
    )
    texts = built.tokenizer.batch_decode(output_ids[:, input_ids.shape[1] :], skip_special_tokens=True)
    return [text[: min((text.index(end) for end in stop if end in text), default=len(text))] for text in texts]


def pad_left(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns token ids [B, S] padded on the left, and the mask [B, S] with 0 at padding."""
    length = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (length - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
