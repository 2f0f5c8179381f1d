"""Splits conversations that are longer than a row into pieces of whole turns."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, Literal

from datamodules.encoding.messages import image_parts, with_earlier_images

Messages = Sequence[dict[str, Any]]
OverLong = Literal["truncate", "split", "drop"]
"""Treatment of a sample that is longer than a row."""
Turns = tuple[int, int]
"""The first turn of a piece, and the one after its last."""
TOO_LONG = "too long"


def split_turns(turns: int, limit: int, tokens: Callable[[int, int], int]) -> list[Turns]:
    """Splits a conversation into pieces of as many turns as fit; leaves out a turn that exceeds a row by itself.

    Args:
        turns: the number of turns.
        limit: the length of a row in tokens.
        tokens: returns the tokens of the turns [start, end) as a conversation of their own.
    """
    pieces: list[Turns] = []
    start = 0
    while start < turns:
        # The number of tokens grows with the turns, so a binary search finds the last end that fits.
        fitting = bisect_right(range(start + 1, turns + 1), limit, key=lambda end: tokens(start, end))
        if fitting:
            pieces.append((start, start + fitting))
        start += max(fitting, 1)
    return pieces


def some_turns(messages: Messages, start: int, end: int) -> Messages:
    """Returns the turns [start, end) as a conversation, with the system messages and the images of earlier turns.

    A turn ends with an answer. Images of earlier turns come before the text of the first turn, each with the whitespace
    that follows it in its own turn.
    """
    ends = [0, *answer_ends(messages)]
    before = messages[: ends[start]]
    first, *rest = messages[ends[start] : ends[end]]
    talk = [message for message in before if message["role"] != "system"]
    if image_parts(talk):
        first = {**first, "content": with_earlier_images(talk, first["content"])}
    return [*(message for message in before if message["role"] == "system"), first, *rest]


def answer_ends(messages: Messages) -> list[int]:
    """Returns the number of messages up to and including each answer."""
    return [number + 1 for number, message in enumerate(messages) if message["role"] == "assistant"]
