"""The messages of a record: what they look like, and what is wrong with them."""

from collections.abc import Iterable, Sequence
from typing import Any

Message = dict[str, Any]
"""{"role": one of ROLES, "content": str, or a list of {"type": "image"} and {"type": "text", "text": str}}"""

ROLES = ("system", "user", "assistant")


def check_messages(messages: Any) -> str:
    """What is wrong with the `messages` of a record, in a few words; empty where nothing is."""
    if not isinstance(messages, list) or not messages:
        return "no messages"
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            return f"message {number} has no role of {', '.join(ROLES)}"
        content = message.get("content")
        if isinstance(content, str):
            continue
        if not isinstance(content, list) or not all(_is_part(part) for part in content):
            return f"message {number} has content that is neither text nor a list of image and text parts"
    return ""


def image_parts(messages: Iterable[Message]) -> int:
    """How many images the messages speak of."""
    return sum(part["type"] == "image" for message in messages for part in parts_of(message))


def parts_of(message: Message) -> list[dict[str, Any]]:
    """A message's content as parts."""
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def leading_blanks(text: str) -> str:
    """The white space at the beginning of a text."""
    return text[: len(text) - len(text.lstrip())]


def shown_again(messages: Iterable[Message], content: str | Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The images of earlier messages in front of a later content, each with the blanks that follow it there."""
    shown: list[dict[str, Any]] = []
    for message in messages:
        before = False
        for part in parts_of(message):
            if part["type"] == "image":
                shown.append({"type": "image"})
            elif before and (lead := leading_blanks(part["text"])):
                shown.append({"type": "text", "text": lead})
            before = part["type"] == "image"
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [*shown, *parts]


def _is_part(part: Any) -> bool:
    if not isinstance(part, dict):
        return False
    return part.get("type") == "image" or (part.get("type") == "text" and isinstance(part.get("text"), str))
