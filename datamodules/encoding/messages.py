"""The format of a record's messages, and checks of it."""

from collections.abc import Iterable, Sequence
from typing import Any

Message = dict[str, Any]
"""{"role": one of ROLES, "content": str, or a list of {"type": "image"} and {"type": "text", "text": str}}"""

ROLES = ("system", "user", "assistant")
SIZE = "size_in_pixels"
"""The key of an image part with the size of its image, from which the number of its tiles follows."""


def check_messages(messages: Any) -> str:
    """Returns a short description of what is wrong with a record's `messages`, empty where nothing is."""
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
    """Returns the number of image parts in the messages."""
    return sum(part["type"] == "image" for message in messages for part in parts_of(message))


def parts_of(message: Message) -> list[dict[str, Any]]:
    """Returns a message's content as a list of content parts."""
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def with_sizes(messages: Sequence[Message], sizes: Sequence[tuple[int, int]]) -> list[Message]:
    """Returns the messages with the size (width, height) of each image in its part, in their order."""
    assert len(sizes) == image_parts(messages)
    left = iter(sizes)

    def sized(part: dict[str, Any]) -> dict[str, Any]:
        return {**part, SIZE: next(left)} if part["type"] == "image" else part

    return [
        message if isinstance(message["content"], str) else {**message, "content": list(map(sized, message["content"]))}
        for message in messages
    ]


def leading_blanks(text: str) -> str:
    """Returns the whitespace at the beginning of a text."""
    return text[: len(text) - len(text.lstrip())]


def with_earlier_images(messages: Iterable[Message], content: str | Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns `content` after the images of earlier messages, each with the whitespace that follows it there."""
    images: list[dict[str, Any]] = []
    for message in messages:
        after_image = False
        for part in parts_of(message):
            if part["type"] == "image":
                images.append({key: part[key] for key in ("type", SIZE) if key in part})
            elif after_image and (lead := leading_blanks(part["text"])):
                images.append({"type": "text", "text": lead})
            after_image = part["type"] == "image"
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [*images, *parts]


def _is_part(part: Any) -> bool:
    if not isinstance(part, dict):
        return False
    return part.get("type") == "image" or (part.get("type") == "text" and isinstance(part.get("text"), str))
