"""Reads the letter of an option from an answer, by the rule of each benchmark.

Every rule gets the answer and {letter: text of the option}, in order, and returns the letter, or an empty text where
the answer names none. The rules of benchmarks are those that lmms-eval has for them, with one difference: where
lmms-eval takes a random option, or asks GPT, the answer names none here.
"""

import re
from collections.abc import Callable, Mapping

MAX_CHARACTERS = 20_000
"""Characters of an answer in which a letter is looked for."""
_MARKS = ",.!?;:'"
_AT_START = re.compile(r"\W{0,20}([A-Z])(?:\W|$)(?!\s?[a-z])")
_LABELLED = re.compile(r"\W{0,20}([A-Z])\W{0,2}[.):](?=\W|$)")
_NAMED = re.compile(r"\b(?:answer|option|choice)\b(?:\s+(?:is|would be))?[\s:*(\"']{0,10}([A-Z])\b(?!')", re.IGNORECASE)
_SPLIT_MARKS = (
    ("", "."), ("", ","), ("", ":"), ("", ")"), ("", ")."), ("(", ")"), ("(", ")."), (":", ""), (":", ","), (":", "."),
    (":", ")"), (":", ")."),
)  # fmt: skip
_NAMES_OF_ANSWERS = (
    "answer", "correct answer", "best answer", "correct option", "best option", "choice", "correct choice",
)  # fmt: skip
_PHRASES = (
    *(f"{article}{name} is" for name in _NAMES_OF_ANSWERS for article in ("", "the ")), "my answer is", "my choice is",
    "i choose", "i select", "i pick", "옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは",
)  # fmt: skip

Options = Mapping[str, str]


def letter(text: str, options: Options) -> str:
    """Returns the letter that the answer is, else begins with, else names last, else that of the one option in it."""
    text = text.strip()[:MAX_CHARACTERS]
    alone = re.sub(r"[\W_]", "", text[:20]).upper() if len(text) <= 20 else ""
    if alone in options:
        return alone
    for pattern in (_LABELLED, _AT_START):
        if (found := pattern.match(text)) and found[1] in options:
            return found[1]
    named = [name for name in _NAMED.findall(text) if name in options]
    return named[-1] if named else _one_contained(" ".join(text.lower().split()), options)


def _one_contained(text: str, options: Options) -> str:
    """Returns the letter of the only option in the text; one that is part of another option there does not count."""
    texts = {name: " ".join(option.lower().split()) for name, option in options.items()}
    exact = [name for name, option in texts.items() if option == text.rstrip(".")]
    there = [name for name, option in texts.items() if option and re.search(_whole(option), text)]
    largest = [name for name in there if not any(texts[name] != texts[o] and texts[name] in texts[o] for o in there)]
    found = exact or largest
    return found[0] if len(found) == 1 else ""


def _whole(option: str) -> str:
    return rf"(?<!\w){re.escape(option)}(?!\w)"


def ai2d(text: str, options: Options) -> str:
    """Returns the capital before a full stop at the beginning, else the whole answer without case and punctuation."""
    found = re.match(r"\s*([A-Z])\.", text)
    alone = found[1] if found else re.sub(r"[!-/:-@\[-`{-~]", "", text[:MAX_CHARACTERS]).upper()
    return alone if alone in options else ""


def scienceqa(text: str, options: Options) -> str:
    """Returns the letter that is the whole answer, or the capital before a full stop at the beginning."""
    text = text.strip()
    alone = text[0] if len(text) > 1 and text[0].isupper() and text[1] == "." else text.upper()
    return alone if alone in options else ""


def mmmu(text: str, options: Options) -> str:
    """Returns the last letter in brackets, else the last one before a space or full stop, else an option contained."""
    for mark in _MARKS:
        text = text.strip(mark)
    text = f" {text} "
    for form, place in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        found = [name for name in options if form.format(name) in text]
        if found:
            return max(found, key=lambda name: (text.rfind(place.format(name)), -found.index(name)))
    if len(text.split(None, 5)) > 5:
        lower = text.lower()
        found = [name for name, option in options.items() if option.lower() in lower]
        if found:
            return max(found, key=lambda name: (lower.rfind(options[name].lower()), -found.index(name)))
    return ""


def mmbench(text: str, options: Options) -> str:
    """Returns the one letter that is a word, alone or with marks, else the one option that the answer contains.

    An A in an answer of over three words may be an article, so that none of the letters alone counts there. As in
    lmms-eval, letters go up to E, even where there are fewer options.
    """
    words = set(pieces := text.split())
    found = [name for name in "ABCDE" if name in words]
    if len(found) == 1 and not ("A" in words and len(pieces) > 3):
        return found[0]
    for before, after in _SPLIT_MARKS:
        found = [name for name in "ABCDE" if f"{before}{name}{after}" in words]
        if len(found) == 1:
            return found[0]
    lower = text.lower()
    contained = [name for name, option in options.items() if option.lower() in lower]
    return contained[0] if len(contained) == 1 else ""


def mmstar(text: str, options: Options) -> str:
    """Returns the letter at the beginning, the end, after a phrase, or with a mark, in this order of preference.

    This is lmms-eval's common rule for letters. As the last resort, any letter in the text counts, as in "Blue".
    """
    if not text.strip():
        return ""
    text = text.strip()
    for mark in f'{_MARKS}"':
        text = text.strip(mark)
    bare, text = text.strip(), f" {text} "
    lower = text.lower()
    ends = [lower.find(phrase) + len(phrase) for phrase in _PHRASES if phrase in lower]

    def last(form: str) -> dict[str, int]:
        return {name: text.rfind(form.format(name)) for name in options if form.format(name) in text}

    def after_phrase() -> dict[str, int]:
        return {name: max(text.find(name, end) for end in ends) for name in options if ends}

    preferences: tuple[Callable[[], dict[str, int]], ...] = (
        lambda: {name: 0 for name in options if bare.startswith(name) and not bare[1:2].isalpha()},
        lambda: {name: 0 for name in options if bare.endswith(name) and not bare[-2:-1].isalpha()},
        after_phrase, lambda: last("({})"), lambda: last("{}."), lambda: last("{}:"), lambda: last("{})"),
        lambda: last("{} "), lambda: last("{}"),
    )  # fmt: skip
    for places in preferences:
        found = {name: place for name, place in places().items() if place >= 0}
        if found:
            return max(found, key=lambda name: found[name])
    return ""


READINGS: dict[str, Callable[[str, Options], str]] = {
    "letter": letter, "ai2d": ai2d, "mmbench": mmbench, "mmmu": mmmu, "mmstar": mmstar, "scienceqa": scienceqa,
}  # fmt: skip
