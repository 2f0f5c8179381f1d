"""Fixes the date that a chat template writes: it comes from the configuration, never from the clock."""

import datetime
import re
from functools import lru_cache
from typing import Any

CHAT_DATE = "2024-07-26"
"""Default date; Llama 3's templates write it where strftime_now is not available."""

_ASKS = re.compile(r"\bstrftime_now\b")
_OPENING = "{% macro strftime_now(format) %}"
_DIRECTIVES = [f"%{flag}{letter}" for flag in ("-", "") for letter in "aAbBcdDeFGhHIjkmMnpRSTuUVwWxXyYzZ"]


def asks_for_the_day(template: str) -> bool:
    """Returns whether a chat template reads the clock when it is rendered."""
    return _ASKS.search(template) is not None and not writes_the_day(template)


def writes_the_day(template: str) -> bool:
    """Returns whether `dated` has put a date into a chat template."""
    return template.startswith(_OPENING)


@lru_cache(maxsize=64)
def dated(template: str, day: str = CHAT_DATE) -> str:
    """Returns the chat template with `day` (YYYY-MM-DD, at midnight) in place of the clock; others unchanged.

    The date becomes part of the template's text, so that it is saved and hashed with it.
    """
    if not asks_for_the_day(template):
        return template
    time = datetime.datetime.fromisoformat(day)
    formatted = "".join(f" | replace('{one}', '{time.strftime(one)}')" for one in _DIRECTIVES)
    # The renderer drops the line break after the macro, so that the output begins as before.
    return f"{_OPENING}{{{{ format{formatted} }}}}{{% endmacro %}}\n{template}"


def dated_tokenizer(tokenizer: Any, day: str = CHAT_DATE) -> Any:
    """Puts `day` into every chat template of a tokenizer that reads the clock; returns the tokenizer."""
    templates = tokenizer.chat_template
    if isinstance(templates, dict):
        tokenizer.chat_template = {name: dated(template, day) for name, template in templates.items()}
    elif templates is not None:
        tokenizer.chat_template = dated(templates, day)
    return tokenizer


def has_a_day(tokenizer: Any) -> bool:
    """Returns whether `dated_tokenizer` has put a date into a chat template of the tokenizer."""
    templates = tokenizer.chat_template or {}
    return any(map(writes_the_day, templates.values() if isinstance(templates, dict) else [templates]))
