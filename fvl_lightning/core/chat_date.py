"""The date that a chat template writes: it is configured, and never read from the clock."""

import datetime
import re
from functools import lru_cache
from typing import Any

CHAT_DATE = "2024-07-26"
"""The day where no other is set; Llama 3's own templates write it where they cannot ask for the time."""

_ASKS = re.compile(r"\bstrftime_now\b")
_OPENING = "{% macro strftime_now(format) %}"
_DIRECTIVES = [f"%{flag}{letter}" for flag in ("-", "") for letter in "aAbBcdDeFGhHIjkmMnpRSTuUVwWxXyYzZ"]


def asks_for_the_day(template: str) -> bool:
    """Whether a chat template asks for the time at which it is rendered."""
    return _ASKS.search(template) is not None and not writes_the_day(template)


def writes_the_day(template: str) -> bool:
    """Whether a chat template has got its day from `dated`."""
    return template.startswith(_OPENING)


@lru_cache(maxsize=64)
def dated(template: str, day: str = CHAT_DATE) -> str:
    """The chat template with `day` (YYYY-MM-DD, at midnight) for the time it asks for; others as they are.

    The day becomes part of the template's text: what is saved with the text, or known by it, has the day.
    """
    if not asks_for_the_day(template):
        return template
    time = datetime.datetime.fromisoformat(day)
    formatted = "".join(f" | replace('{one}', '{time.strftime(one)}')" for one in _DIRECTIVES)
    # The line break behind the macro is dropped by the renderer, so that the template begins a line as before.
    return f"{_OPENING}{{{{ format{formatted} }}}}{{% endmacro %}}\n{template}"


def dated_tokenizer(tokenizer: Any, day: str = CHAT_DATE) -> Any:
    """The tokenizer, with `day` in its chat template, or in each of them, where that asks for the time."""
    templates = tokenizer.chat_template
    if isinstance(templates, dict):
        tokenizer.chat_template = {name: dated(template, day) for name, template in templates.items()}
    elif templates is not None:
        tokenizer.chat_template = dated(templates, day)
    return tokenizer


def has_a_day(tokenizer: Any) -> bool:
    """Whether a chat template of the tokenizer has got its day from `dated_tokenizer`."""
    templates = tokenizer.chat_template or {}
    return any(map(writes_the_day, templates.values() if isinstance(templates, dict) else [templates]))
