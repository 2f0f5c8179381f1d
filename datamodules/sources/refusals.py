"""Turns errors of a single row into Refusals."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from datamodules.sources.base import Refusal, Row

RawRow = TypeVar("RawRow")


class Refused(Exception):
    """Raised inside a source for a broken row; `attempt` turns it into a Refusal."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.refusal = Refusal(reason, detail)


def attempt(build: Callable[[RawRow], Row], raw: RawRow | Refusal, where: str) -> Row | Refusal:
    """Returns the row that `build` makes of a raw row at `where`, or a Refusal."""
    if isinstance(raw, Refusal):
        return replace(raw, where=where)
    try:
        return replace(build(raw), where=where)
    except Refused as refused:
        return replace(refused.refusal, where=where, id=row_id(raw))


def row_id(raw: Any) -> str | int | None:
    """Returns the id of a raw row, if it has one."""
    value = raw.get("id") if isinstance(raw, dict) else None
    return value if isinstance(value, str | int) else None
