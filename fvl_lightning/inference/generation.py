"""A saved model in use: messages with pictures in, words out; several answers at once, or one as it is written."""

import sys
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from datamodules.encoding.messages import Message
from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.modeling.build import BuiltModel, LoadedModel


@dataclass(frozen=True)
class Sampling:
    """How words are chosen."""

    max_tokens: int = 64
    """Most tokens of an answer."""
    temperature: float = 0.0
    """0 takes the likeliest word; above, words are drawn, the more freely the higher."""
    top_p: float = 1.0
    """Words are drawn among the likeliest that have this probability together."""
    beams: int = 1
    """Answers that are pursued at once, of which the likeliest is given."""

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
    def words(self) -> dict[str, Any]:
        """What transformers' generate is told."""
        if self.temperature == 0:
            return {"do_sample": False, "num_beams": self.beams}
        drawn = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return {"num_beams": self.beams, **drawn}


@dataclass(frozen=True)
class Prompt:
    """Messages as the model reads them: S token ids, and their pictures [I, 3, P, P] or None."""

    ids: list[int]
    pixel_values: Tensor | None


def encode(loaded: LoadedModel, messages: Sequence[Message]) -> Prompt:
    """The messages up to where the assistant's next answer begins; pictures stand in their parts (see the processor).

    Raises:
        DataError: a message or a picture that cannot be read, or more tokens than the model has positions for.
    """
    inputs = loaded.processor.apply_chat_template(
        [list(messages)], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors=None
    )
    (ids,) = inputs["input_ids"]
    held = positions(loaded)
    if len(ids) >= held:
        raise DataError(f"the prompt has {len(ids)} tokens with its pictures, the model holds {held} with the answer")
    return Prompt(ids, inputs.get("pixel_values"))


def positions(loaded: LoadedModel) -> int:
    """Tokens the language model has positions for."""
    config = loaded.model.config.get_text_config()
    return config.max_position_embeddings if hasattr(config, "max_position_embeddings") else sys.maxsize


def answer(loaded: LoadedModel, prompts: Sequence[Prompt], sampling: Sampling) -> list[str]:
    """The answer to each prompt; greedy in float32, those of one at a time, token for token."""
    room = positions(loaded) - max(len(prompt.ids) for prompt in prompts)
    if len(prompts) > 1 and room < sampling.max_tokens:  # the longest leaves the others less room than they have
        return [text for prompt in prompts for text in answer(loaded, [prompt], sampling)]
    ids = [prompt.ids for prompt in prompts]
    return generate_texts(
        loaded, ids, min(room, sampling.max_tokens), **_images(loaded, prompts), **sampling.words
    )


def stream(loaded: LoadedModel, prompt: Prompt, sampling: Sampling) -> Generator[str]:
    """An answer piece by piece as it is written; closing the iterator stops the model at its next token.

    `sampling.beams` must be 1: what several beams say is known at the end only.
    """
    assert sampling.beams == 1
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
                **sampling.words,
            )
        finally:
            streamer.end()  # or an error would leave the reader waiting

    with ThreadPoolExecutor(1) as writer:
        writing = writer.submit(write)
        try:
            yield from (piece for piece in streamer if piece)
            writing.result()
        finally:
            closed.set()


def user_message(pictures: list[Any], text: str) -> Message:
    """What a user asks about pictures, which come first."""
    images = [{"type": "image", "image": picture} for picture in pictures]
    return {"role": "user", "content": [*images, {"type": "text", "text": text}]}


class _Closed(StoppingCriteria):
    """Stops where nobody reads any more."""

    def __init__(self, closed: Event) -> None:
        self.closed = closed

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), self.closed.is_set(), device=input_ids.device)


def _images(loaded: LoadedModel, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    pixels = [prompt.pixel_values for prompt in prompts if prompt.pixel_values is not None]
    return {"pixel_values": torch.cat(pixels).to(loaded.model.device, loaded.model.dtype)} if pixels else {}


ANSWER_TOKENS = 16
"""Most tokens an answer may have; the longest true answer of the demo has fewer."""


def generate_texts(
    built: BuiltModel, prompts: Sequence[Sequence[int]], max_tokens: int = ANSWER_TOKENS, **inputs: Any
) -> list[str]:
    """Texts generated after `prompts` (token ids, image placeholders expanded); padded on the left to one length.

    An answer ends where the model's generation_config says: at the token that training ends answers with, or at eos.
    `inputs` go to transformers' generate: the images, and how to sample (greedy unless do_sample=True is among them).
    """
    input_ids, mask = left_padded(prompts, built.tokenizer.pad_token_id, built.model.device)
    written = built.model.generate(
        input_ids,
        attention_mask=mask,
        max_new_tokens=max_tokens,
        **{"do_sample": False} | inputs,
    )
    return built.tokenizer.batch_decode(written[:, input_ids.shape[1] :], skip_special_tokens=True)


def left_padded(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids [B, S] padded on the left, and the mask [B, S] with 0 at pads."""
    length = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (length - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
