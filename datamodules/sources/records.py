"""Converts the conversations and captions of common datasets to records (datamodules/README.md)."""

import json
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from datamodules.sources.refusals import Refused

Message = dict[str, Any]

IMAGE = "<image>"
"""Image placeholder in texts of LLaVA's format."""
SPEAKERS = {"human": "user", "gpt": "assistant", "system": "system"}
"""LLaVA's names of the roles."""

_RESERVED = ("messages", "kinds")
"""Fields of a record that the kit reads, so that metadata cannot have their names."""


def metadata(row: Mapping[Any, Any], used: Collection[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Collects the metadata of a row.

    Args:
        row: the row.
        used: fields that are no metadata.

    Returns:
        Texts, finite numbers and booleans by field; and the names of all other fields that are not empty.
    """
    kept: dict[str, Any] = {}
    unused: list[str] = []
    for key, value in row.items():
        if key in used:
            continue
        if isinstance(key, str) and key not in _RESERVED and _is_plain(value):
            kept[key] = value
        elif not _is_empty(value):
            unused.append(str(key))
    return kept, tuple(unused)


def turn_fields(column: str, turns: Any, used: Collection[str]) -> tuple[str, ...]:
    """Returns `<column>.<field>` for the fields of turns that are neither empty nor `used`."""
    return _fields(column, turns_of(turns), used)


def part_fields(column: str, messages: Any) -> tuple[str, ...]:
    """Returns `<column>.content.<field>` for the unread fields of content parts that are not empty."""
    parts = [part for message in turns_of(messages) for part in _parts(message.get("content")) or ()]
    return _fields(f"{column}.content", [part for part in parts if isinstance(part, dict)], ("type", "text", "index"))


def _fields(prefix: str, mappings: Iterable[Mapping[Any, Any]], used: Collection[str]) -> tuple[str, ...]:
    names = {key for one in mappings for key, value in one.items() if key not in used and not _is_empty(value)}
    return tuple(f"{prefix}.{key}" for key in sorted(map(str, names)))


def caption(value: Any) -> str:
    """Returns a caption unchanged; Refused where it is no text or blank."""
    if isinstance(value, bytes):  # a Parquet column that its writer did not declare as text
        value = value.decode("utf-8", errors="surrogateescape")
    if not isinstance(value, str) or not value.strip():
        raise Refused("no caption", "" if value is None or isinstance(value, str) else f"found {type(value).__name__}")
    return value


def content(text: str) -> str | list[dict[str, str]]:
    """Splits a text at <image> into image parts and text parts; returns a text without <image> unchanged."""
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
    """Converts LLaVA's [{"from": "human" | "gpt" | "system", "value": text with <image>}] to messages."""
    messages: list[Message] = []
    for number, turn in enumerate(turns_of(turns)):
        speaker, value = turn.get("from"), turn.get("value")
        if not isinstance(speaker, str) or speaker not in SPEAKERS:
            raise Refused("bad messages", f"turn {number} is from {speaker!r}, expected one of {', '.join(SPEAKERS)}")
        if not isinstance(value, str):
            raise Refused("bad messages", f"turn {number} has no text as its value")
        messages.append({"role": SPEAKERS[speaker], "content": content(value)})
    return messages


def from_messages(messages: Any) -> list[Message]:
    """Copies [{"role": ..., "content": text, or Hugging Face's content parts}] without unused fields."""
    images = 0
    converted: list[Message] = []
    for number, message in enumerate(turns_of(messages)):
        value = message.get("content")
        if (listed := _parts(value)) is not None:
            value = listed
        if isinstance(value, str):
            parts = content(value)
        elif isinstance(value, list):
            parts = [_part(part, number) for part in value]
            for part in value:
                # Some datasets number their images; only the order of the images themselves is supported.
                if part["type"] == "image" and part.get("index") not in (None, images):
                    raise Refused("bad messages", f"message {number} has image {part['index']}, expected {images}")
                images += part["type"] == "image"
        else:
            raise Refused("bad messages", f"message {number} has neither text nor parts as its content")
        converted.append({"role": message.get("role"), "content": parts})
    return converted


def from_texts(turns: Any, images: int) -> list[Message]:
    """Converts the Cauldron's [{"user": text, "assistant": text}] to messages.

    Images stand at <image> in the texts; without any <image>, all images come before the first question.
    """
    messages: list[Message] = []
    for number, turn in enumerate(turns_of(turns)):
        question, answer = turn.get("user"), turn.get("assistant")
        if not isinstance(question, str) or not isinstance(answer, str):
            raise Refused("bad messages", f"turn {number} has no texts named user and assistant")
        messages += [{"role": "user", "content": content(question)}, {"role": "assistant", "content": content(answer)}]
    if images and all(isinstance(message["content"], str) for message in messages):
        first = [{"type": "text", "text": messages[0]["content"]}] if messages[0]["content"] else []
        messages[0]["content"] = [*({"type": "image"} for _ in range(images)), *first]
    return messages


def first_answer(messages: list[Message]) -> str:
    """Returns the text of the first answer; Refused where there is none."""
    answers = (message["content"] for message in messages if message["role"] == "assistant")
    return caption(next(answers, None))


def answer_kinds(value: Any, messages: list[Message]) -> list[str]:
    """Returns the names that group the scores of answers; Refused where they are not one text per answer."""
    answers = sum(message["role"] == "assistant" for message in messages)
    if not isinstance(value, list) or not all(isinstance(kind, str) for kind in value) or len(value) != answers:
        raise Refused("bad record", f"kinds must be a list of {answers} names, one per answer")
    return value


def turns_of(turns: Any) -> list[dict[str, Any]]:
    """Returns the turns of a conversation as mappings; the column may hold a list, JSON, or one mapping of lists."""
    if isinstance(turns, str):
        try:
            turns = json.loads(turns)
        except (ValueError, RecursionError):
            raise Refused("no messages", "expected a list of turns, found a text that is no JSON") from None
    if isinstance(turns, dict):
        turns = _transposed(turns)
    if not isinstance(turns, list) or not turns:
        found = "nothing" if turns is None else "an empty list" if turns == [] else f"a {type(turns).__name__}"
        raise Refused("no messages", f"expected a list of turns, found {found}")
    mappings = [_mapping(turn) for turn in turns]
    if not all(isinstance(turn, dict) for turn in mappings):
        raise Refused("bad messages", "a turn is not a mapping")
    return mappings


def _transposed(columns: dict[Any, Any]) -> list[dict[Any, Any]]:
    lengths = {len(values) if isinstance(values, list) else None for values in columns.values()}
    if len(lengths) != 1 or None in lengths:
        raise Refused(
            "no messages", "expected a list of turns, found a mapping that is not one of lists of equal length"
        )
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _mapping(turn: Any) -> Any:
    """Converts a Parquet map, which is read as a list of pairs, to a dict; returns any other turn unchanged."""
    is_pairs = isinstance(turn, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in turn)
    if not is_pairs:
        return turn
    if len({key for key, _ in turn}) != len(turn):
        raise Refused("bad messages", "a turn has a duplicate key")
    return dict(turn)


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))


def _is_empty(value: Any) -> bool:
    """Returns whether a field is null, in any of the ways that datasets write it."""
    return value is None or value in ("", [], {}) or (isinstance(value, float) and math.isnan(value))


def _parts(value: Any) -> list[Any] | None:
    """Returns the parts of a content, which may be JSON in a text; None where it is no list of parts."""
    if not isinstance(value, str):
        return value if isinstance(value, list) else None
    if not value.startswith("[{"):
        return None
    try:
        parts = json.loads(value)
    except (ValueError, RecursionError):
        return None
    # An answer may itself be JSON, so it is only read as parts if it contains nothing else.
    return parts if all(_is_part(part) for part in parts) else None


def _is_part(part: Any) -> bool:
    if not isinstance(part, dict):
        return False
    return part.get("type") == "image" or (part.get("type") == "text" and isinstance(part.get("text"), str))


def _part(part: Any, number: int) -> dict[str, str]:
    if isinstance(part, dict) and part.get("type") == "image":
        return {"type": "image"}
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    raise Refused("bad messages", f"message {number} has a part that is neither text nor image")
