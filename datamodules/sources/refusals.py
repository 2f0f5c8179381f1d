"""How the code that takes a row apart says that it can't be used."""

from collections.abc import Callable
from typing import TypeVar

from datamodules.sources.base import Refusal, Row

Found = TypeVar("Found")


class Refused(Exception):
    """Raised inside a source where a row turns out to be broken; `attempt` makes the Refusal of it."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.refusal = Refusal(reason, detail)


def attempt(build: Callable[[Found], Row], found: Found | Refusal) -> Row | Refusal:
    """The row that `build` makes of what was found, or the Refusal of either."""
    if isinstance(found, Refusal):
        return found
    try:
        return build(found)
    except Refused as refused:
        return refused.refusal
