"""The ways in which data sets write conversations and captions, as records (datamodules/README.md)."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from datamodules.sources.refusals import Refused

Message = dict[str, Any]

IMAGE = "<image>"
"""Where an image stands in a text of LLaVA's format."""
SPEAKERS = {"human": "user", "gpt": "assistant", "system": "system"}
"""LLaVA's names of the roles."""


def scalars(row: Mapping[Any, Any], without: Collection[str]) -> dict[str, Any]:
    """The metadata worth keeping: texts, finite numbers and booleans, but for the fields named in `without`."""
    return {
        key: value
        for key, value in row.items()
        if isinstance(key, str)
        and key not in without
        and (isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)))
    }


def caption(value: Any) -> str:
    """A caption, as it is; refused where it is no text or blank."""
    if not isinstance(value, str) or not value.strip():
        raise Refused("no caption", "" if value is None or isinstance(value, str) else f"found {type(value).__name__}")
    return value


def content(text: str) -> str | list[dict[str, str]]:
    """A text with image parts where it says <image>, and all around them kept; without one, the text itself."""
    if IMAGE not in text:
        return text
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(text.split(IMAGE)):
        if number:
            parts.append({"type": "image"})
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts


def from_conversations(turns: Any) -> list[Message]:
    """LLaVA's [{"from": "human" | "gpt" | "system", "value": text with <image>}] as messages."""
    messages: list[Message] = []
    for number, turn in enumerate(_turns(turns)):
        speaker, value = turn.get("from"), turn.get("value")
        if not isinstance(speaker, str) or speaker not in SPEAKERS:
            raise Refused("bad messages", f"turn {number} is from {speaker!r}, expected one of {', '.join(SPEAKERS)}")
        if not isinstance(value, str):
            raise Refused("bad messages", f"turn {number} has no text as its value")
        messages.append({"role": SPEAKERS[speaker], "content": content(value)})
    return messages


def from_messages(messages: Any) -> list[Message]:
    """[{"role": ..., "content": text, or parts as Hugging Face's processors take them}], freed of unused fields."""
    shown = 0
    made: list[Message] = []
    for number, message in enumerate(_turns(messages)):
        said = message.get("content")
        if isinstance(said, str):
            parts = content(said)
        elif isinstance(said, list):
            parts = [_part(part, number) for part in said]
            for part in said:
                # Some sets number their images; any other order than the running one would need a look-up.
                if part["type"] == "image" and part.get("index") not in (None, shown):
                    raise Refused("bad messages", f"message {number} shows image {part['index']}, not {shown}")
                shown += part["type"] == "image"
        else:
            raise Refused("bad messages", f"message {number} has neither text nor parts as its content")
        made.append({"role": message.get("role"), "content": parts})
    return made


def from_texts(turns: Any, images: int) -> list[Message]:
    """The Cauldron's [{"user": text, "assistant": text}] as messages, all images before the first question."""
    messages: list[Message] = []
    for number, turn in enumerate(_turns(turns)):
        question, answer = turn.get("user"), turn.get("assistant")
        if not isinstance(question, str) or not isinstance(answer, str):
            raise Refused("bad messages", f"turn {number} has no texts named user and assistant")
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    if images:
        first = [{"type": "text", "text": messages[0]["content"]}] if messages[0]["content"] else []
        messages[0]["content"] = [*({"type": "image"} for _ in range(images)), *first]
    return messages


def first_answer(messages: list[Message]) -> str:
    """The first text that the assistant says; refused where it says none."""
    answers = (message["content"] for message in messages if message["role"] == "assistant")
    return caption(next(answers, None))


def answer_kinds(value: Any, messages: list[Message]) -> list[str]:
    """The names by which scores of the answers are grouped; refused where they are not one text per answer."""
    answers = sum(message["role"] == "assistant" for message in messages)
    if not isinstance(value, list) or not all(isinstance(kind, str) for kind in value) or len(value) != answers:
        raise Refused("bad record", f"kinds must be a list of {answers} names, one per answer")
    return value


def _turns(turns: Any) -> list[dict[str, Any]]:
    if not isinstance(turns, list) or not turns:
        raise Refused("no messages")
    if not all(isinstance(turn, dict) for turn in turns):
        raise Refused("bad messages", "a turn is not a mapping")
    return turns


def _part(part: Any, number: int) -> dict[str, str]:
    if isinstance(part, dict) and part.get("type") == "image":
        return {"type": "image"}
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    raise Refused("bad messages", f"message {number} has a part that is neither text nor image")
