"""Reads the requests of lmms-eval: argument tuples with functions that read a document's images."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

from datamodules.encoding.messages import Message
from fvl_lightning.core.errors import DataError
from fvl_lightning.evaluation.task_rows.prompts import place_images
from fvl_lightning.inference.generation import Sampling, user_message

logger = logging.getLogger(__name__)

MAX_NEW_TOKENS = 1024
"""Length limit of an answer where a task sets none, as in lmms-eval's own models."""
KNOWN_SETTINGS = ("max_new_tokens", "temperature", "top_p", "num_beams", "do_sample", "until")
"""The generation_kwargs that have an effect here."""

Documents = Mapping[str, Mapping[str, Any]]
"""{task: {split: documents by number}}, as lmms-eval gives it to a model."""


@dataclass(frozen=True)
class EvalRequest:
    """A request of lmms-eval."""

    place: str
    """Names the document, for messages."""
    text: str
    """The context, whose length is that of the prompt without images."""
    messages: Callable[[], list[Message]]
    """Reads the images, and returns the conversation with them."""
    sampling: Sampling = field(default_factory=Sampling)
    """Length of the answer, and how it is decoded."""
    stop: tuple[str, ...] = ()
    """Texts at which the answer is cut."""
    continuation: str = ""
    """The answer whose likelihood is asked for."""


def simple_generation(arguments: Sequence[Any], documents: Documents) -> EvalRequest:
    """Reads a generation request of a task with images separate from the text.

    Args:
        arguments: (context, generation_kwargs, doc_to_visual, doc_id, task, split).
        documents: the documents of all tasks.
    """
    text, settings, doc_to_visual, doc_id, task, split = arguments
    read = partial(_simple_messages, text, doc_to_visual, documents, task, split, doc_id)
    return EvalRequest(_place(task, doc_id), text, read, *_decoding(settings))


def chat_generation(arguments: Sequence[Any], documents: Documents) -> EvalRequest:
    """Reads a generation request of a task that gives a conversation.

    Args:
        arguments: (context, doc_to_messages, generation_kwargs, doc_id, task, split).
        documents: the documents of all tasks.
    """
    text, doc_to_messages, settings, doc_id, task, split = arguments
    place = _place(task, doc_id)

    def read() -> list[Message]:
        return [_message(place, message) for message in doc_to_messages(documents[task][split][doc_id])]

    return EvalRequest(place, text, read, *_decoding(settings))


def likelihood(arguments: Sequence[Any], documents: Documents) -> EvalRequest:
    """Reads a request for the likelihood of an answer.

    The space that lmms-eval writes before the answer is removed: an answer in a conversation begins without one.

    Args:
        arguments: (context, continuation, doc_to_visual, doc_id, task, split), where the continuation may be a function
            of the document; or a context and a continuation without a document.
        documents: the documents of all tasks.
    """
    if len(arguments) == 2:
        text, continuation = arguments
        return EvalRequest("a text", text, lambda: [user_message([], text)], continuation=continuation.strip())
    text, continuation, doc_to_visual, doc_id, task, split = arguments
    if not isinstance(continuation, str):
        continuation = str(continuation(documents[task][split][doc_id]))
    read = partial(_simple_messages, text, doc_to_visual, documents, task, split, doc_id)
    return EvalRequest(_place(task, doc_id), text, read, continuation=continuation.strip())


def _place(task: str, doc_id: Any) -> str:
    return f"task {task}, document {doc_id}"


def _decoding(settings: Mapping[str, Any]) -> tuple[Sampling, tuple[str, ...]]:
    """Returns the sampling settings and stop texts in generation_kwargs.

    Tokens are sampled if the temperature is above 0 and do_sample is not false; do_sample alone has temperature 1.
    """
    _say_unused(tuple(sorted(set(settings) - set(KNOWN_SETTINGS))))
    sampled, temperature = settings.get("do_sample"), settings.get("temperature")
    if sampled is False:
        temperature = 0
    elif temperature is None:
        temperature = 1 if sampled else 0
    until = settings.get("until") or ()
    sampling = Sampling(
        max_tokens=int(settings.get("max_new_tokens") or MAX_NEW_TOKENS),
        temperature=float(temperature),
        top_p=float(settings.get("top_p") or 1),
        beams=int(settings.get("num_beams") or 1),
    )
    return sampling, tuple(text for text in ([until] if isinstance(until, str) else until) if text)


@lru_cache
def _say_unused(names: tuple[str, ...]) -> None:
    """Logs settings that have no effect, once."""
    if names:
        logger.warning("generation_kwargs: fvl_lightning ignores %s", ", ".join(names))


def _simple_messages(
    text: str, doc_to_visual: Any, documents: Documents, task: str, split: str, doc_id: Any
) -> list[Message]:
    """Returns a user message with the images of a document and its text."""
    return [_placed(_flat(doc_to_visual(documents[task][split][doc_id])) if callable(doc_to_visual) else [], text)]


def _placed(images: Sequence[Any], text: str) -> Message:
    """Returns a user message; images stand at <image> in the text as in the kit's own tasks, or before the text."""
    try:
        parts, shown = place_images(text, range(len(images)))
    except DataError:  # a text that names images which are not there
        return user_message(list(images), text)
    pictures = iter(shown)
    content = [part if part["type"] == "text" else {**part, "image": images[next(pictures)]} for part in parts]
    return {"role": "user", "content": content or text}


def _flat(visuals: Any) -> list[Any]:
    """Returns the images of a document, which lmms-eval gives as one, as a list, or as lists in a list."""
    if visuals is None:
        return []
    if isinstance(visuals, list | tuple):
        return [image for visual in visuals for image in _flat(visual)]
    return [_picture(visuals)]


def _picture(visual: Any) -> Any:
    """Returns an image in a form that the processor reads; data sets write encoded ones as {"bytes", "path"}."""
    if isinstance(visual, Mapping):
        return visual.get("bytes") or visual.get("path") or visual
    return visual


def _message(place: str, message: Any) -> Message:
    """Returns a message of lmms-eval in the form of the kit; DataError where it has a video or a sound."""
    content = message["content"]
    if isinstance(content, str):
        return {"role": message["role"], "content": content}
    parts: list[dict[str, Any]] = []
    for part in content:
        kind = part["type"]
        if kind == "image":
            parts.append({"type": "image", "image": _picture(part["url"])})
        elif kind == "text":
            parts.append({"type": "text", "text": part["text"]})
        else:
            raise DataError(f"{place}: a message has a part of type {kind}, and the model reads images and text alone")
    images = [part["image"] for part in parts if part["type"] == "image"]
    # lmms-eval makes such a message of a task without conversations, whatever the text says of its images.
    if message["role"] == "user" and [part["type"] for part in parts] == ["image"] * len(images) + ["text"]:
        return _placed(images, parts[-1]["text"])
    return {"role": message["role"], "content": parts}
