"""Cleaning steps from a model's output to the answer that is scored."""

import re
from collections.abc import Callable, Iterable, Mapping

_ANSWER = re.compile(r"(?:answer(?:\s+is)?\s*:|answer\s+is\b|####)", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?%?")
_AT_START = re.compile(r"\(?([A-Z])(?:[).:,\]]|\s*$|\s*\n|\s+[-\u2013]\s)")
_IN_BRACKETS = re.compile(r"[(\[]([A-Z])[)\]]")
_NAMED = re.compile(r"\b(?:answer|option|choice)(?:\s+is)?\s*:?\s*[(\[*\"']*([A-Z])\b", re.IGNORECASE)


def clean(text: str, steps: Iterable[str]) -> str:
    """Applies steps of TaskAnswer.clean to a text, in order, and returns the answer."""
    for step in steps:
        text = STEPS[step](text)
    return text


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _first_word(text: str) -> str:
    match = re.search(r"\w+(?:['-]\w+)*", text)
    return match[0] if match else ""


def _letter(text: str) -> str:
    """Returns the option letter at the beginning of the text, else the last one in it, else the text."""
    stripped = text.strip().lstrip("*\"'")
    if match := _AT_START.match(stripped):
        return match[1]
    named = [letter for letter in _NAMED.findall(stripped) if letter.isupper()] or _IN_BRACKETS.findall(stripped)
    return str(named[-1]) if named else text


def _after_answer(text: str) -> str:
    """Returns the text after the last "answer:" or "answer is"; the whole text if it has neither."""
    return _ANSWER.split(text)[-1].strip()


def _number(text: str) -> str:
    """Returns the last number in the text, without thousands separators; the text if it has no number."""
    found = [match[0] for match in _NUMBER.finditer(text) if any(map(str.isdigit, match[0]))]
    return found[-1].replace(",", "").lstrip("+") if found else text


STEPS: Mapping[str, Callable[[str], str]] = {
    "strip": str.strip,
    "first_line": _first_line,
    "first_word": _first_word,
    "lower": str.lower,
    "letter": _letter,
    "after_answer": _after_answer,
    "number": _number,
}
"""{name of a step: its function}."""
