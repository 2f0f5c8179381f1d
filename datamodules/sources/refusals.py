"""How the code that takes a row apart says that it can't be used."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from datamodules.sources.base import Refusal, Row

Found = TypeVar("Found")


class Refused(Exception):
    """Raised inside a source where a row turns out to be broken; `attempt` makes the Refusal of it."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.refusal = Refusal(reason, detail)


def attempt(build: Callable[[Found], Row], found: Found | Refusal, where: str) -> Row | Refusal:
    """The row that `build` makes of what was found at `where`, or the Refusal of either."""
    if isinstance(found, Refusal):
        return replace(found, where=where)
    try:
        return replace(build(found), where=where)
    except Refused as refused:
        return replace(refused.refusal, where=where, id=row_id(found))


def row_id(found: Any) -> str | int | None:
    """The id that a row has of its own, if it has one."""
    own = found.get("id") if isinstance(found, dict) else None
    return own if isinstance(own, str | int) else None
