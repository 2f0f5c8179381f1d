"""The ways in which data sets write conversations and captions, as records (datamodules/README.md)."""

import json
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from datamodules.sources.refusals import Refused

Message = dict[str, Any]

IMAGE = "<image>"
"""Where an image stands in a text of LLaVA's format."""
SPEAKERS = {"human": "user", "gpt": "assistant", "system": "system"}
"""LLaVA's names of the roles."""


_OWN = ("messages", "kinds")
"""Fields of a record that mean something to the kit, so that no metadata may have their names."""


def metadata(row: Mapping[Any, Any], used: Collection[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What a row has beside the fields named in `used`.

    Returns:
        The metadata worth keeping, which is texts, finite numbers and booleans; and the names of all other fields that
        hold something.
    """
    kept: dict[str, Any] = {}
    unused: list[str] = []
    for key, value in row.items():
        if key in used:
            continue
        if isinstance(key, str) and key not in _OWN and _is_plain(value):
            kept[key] = value
        elif not _is_nothing(value):
            unused.append(str(key))
    return kept, tuple(unused)


def turn_fields(column: str, turns: Any, used: Collection[str]) -> tuple[str, ...]:
    """The names of the fields of turns that hold something and are not `used`, behind that of their column."""
    return _fields(column, turns_of(turns), used)


def part_fields(column: str, messages: Any) -> tuple[str, ...]:
    """As turn_fields, of the parts in the content of messages."""
    parts = [part for message in turns_of(messages) for part in _parts(message.get("content")) or ()]
    return _fields(f"{column}.content", [part for part in parts if isinstance(part, dict)], ("type", "text", "index"))


def _fields(prefix: str, mappings: Iterable[Mapping[Any, Any]], used: Collection[str]) -> tuple[str, ...]:
    found = {key for one in mappings for key, value in one.items() if key not in used and not _is_nothing(value)}
    return tuple(f"{prefix}.{key}" for key in sorted(map(str, found)))


def caption(value: Any) -> str:
    """A caption, as it is; refused where it is no text or blank."""
    if isinstance(value, bytes):  # columns of Parquet whose writer did not say that they are text
        value = value.decode("utf-8", errors="surrogateescape")
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
    for number, turn in enumerate(turns_of(turns)):
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
    for number, message in enumerate(turns_of(messages)):
        said = message.get("content")
        if (listed := _parts(said)) is not None:
            said = listed
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
    """The Cauldron's [{"user": text, "assistant": text}] as messages.

    Images stand where the texts say <image>; where none does, all stand before the first question.
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
    """The first text that the assistant says; refused where it says none."""
    answers = (message["content"] for message in messages if message["role"] == "assistant")
    return caption(next(answers, None))


def answer_kinds(value: Any, messages: list[Message]) -> list[str]:
    """The names by which scores of the answers are grouped; refused where they are not one text per answer."""
    answers = sum(message["role"] == "assistant" for message in messages)
    if not isinstance(value, list) or not all(isinstance(kind, str) for kind in value) or len(value) != answers:
        raise Refused("bad record", f"kinds must be a list of {answers} names, one per answer")
    return value


def turns_of(turns: Any) -> list[dict[str, Any]]:
    """The turns of a conversation as mappings; some columns hold them as JSON, or as one mapping of lists."""
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
    made = [_mapping(turn) for turn in turns]
    if not all(isinstance(turn, dict) for turn in made):
        raise Refused("bad messages", "a turn is not a mapping")
    return made


def _transposed(columns: dict[Any, Any]) -> list[dict[Any, Any]]:
    lengths = {len(values) if isinstance(values, list) else None for values in columns.values()}
    if len(lengths) != 1 or None in lengths:
        raise Refused(
            "no messages", "expected a list of turns, found a mapping that is not one of lists of equal length"
        )
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _mapping(turn: Any) -> Any:
    """A turn as Parquet's maps are read, which is as pairs, as a mapping; any other as it is."""
    is_pairs = isinstance(turn, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in turn)
    if not is_pairs:
        return turn
    if len({key for key, _ in turn}) != len(turn):
        raise Refused("bad messages", "a turn has a key twice")
    return dict(turn)


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))


def _is_nothing(value: Any) -> bool:
    """Whether a field is empty: null, in the ways that data sets spell it."""
    return value is None or value in ("", [], {}) or (isinstance(value, float) and math.isnan(value))


def _parts(said: Any) -> list[Any] | None:
    """The parts of a content, which may be JSON in a text; None for what is no list of parts."""
    if not isinstance(said, str):
        return said if isinstance(said, list) else None
    if not said.startswith("[{"):
        return None
    try:
        parts = json.loads(said)
    except (ValueError, RecursionError):
        return None
    # An answer may be JSON itself, so that only what is nothing but parts is read as them.
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
