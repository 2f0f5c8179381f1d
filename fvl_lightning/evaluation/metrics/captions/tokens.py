"""Tokens of captions, as the Penn Treebank has them, and their n-grams.

COCO's captions are tokenised by Stanford's PTBTokenizer, a program in Java, in lower case and without punctuation. Here
regular expressions do the same on captions in plain English; `make test-lmms` counts on how many they differ.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

MAX_CHARACTERS = 100_000
"""Characters of a text that are tokenised."""
MAX_ORDER = 4
"""Length of the longest n-grams."""
_PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
"""Tokens that do not count. Brackets do: in lower case, COCO's script does not know them."""
_REPLACED = str.maketrans(
    {
        "\u2019": "'", "\u2018": "`", "\u201c": " ", "\u201d": " ", '"': " ", "\u2013": " -- ", "\u2014": " -- ",
        "\u2026": " ... ", "(": " -lrb- ", ")": " -rrb- ", "[": " -lsb- ", "]": " -rsb- ", "{": " -lcb- ",
        "}": " -rcb- ", "½": "1/2", "¼": "1/4", "¾": "3/4", "£": " # ", "€": " $ ",
    }
)  # fmt: skip
_ABBREVIATIONS = (
    "mr|mrs|ms|dr|prof|st|jr|sr|vs|etc|inc|ltd|co|corp|ave|blvd|rd|mt|ft|gen|gov|sen|rep|jan|feb|mar|apr|jun|jul|aug|"
    "sep|sept|oct|nov|dec"
)
_TOKEN = re.compile(
    r"-[lr][rsc]b-"
    r"|https?://\S+"
    r"|</?[a-z][^<>\s]{0,40}>"
    r"|(?<!\w)[#@][a-z_]\w*"
    rf"|(?<!\w)(?:{_ABBREVIATIONS})\."
    r"|(?<!\w)(?:[a-z]\.)+[a-z](?:\.(?!\w)|(?![\w.]))"
    r"|(?<!\w)'\d\ds?(?!\w)"
    r"|(?:(?<!\w)[-+])?(?>\d+(?:[.,:/]\d+)*+)(?!\w)"
    r"|'(?:tis|twas)(?!\w)"
    r"|(?:c\+\+|[cf]#)(?!\w)"
    r"|\w++(?:[-/&.'@]\w++)*+"
    r"|\.{2,}|[!?]+|-{2,}|\S"
)
_CLITIC = re.compile(r"(?:n't|'(?:s|m|d|re|ve|ll))$")
_SPLIT = {
    "cannot": ("can", "not"), "gonna": ("gon", "na"), "gotta": ("got", "ta"), "wanna": ("wan", "na"),
    "gimme": ("gim", "me"), "lemme": ("lem", "me"), "'tis": ("'t", "is"), "'twas": ("'t", "was"),
    "y'all": ("y'", "all"),
}  # fmt: skip

NGrams = Counter[tuple[str, ...]]


Split = Literal["ptb", "spaces"]
"""How captions are split. ptb: as COCO's captions, in lower case without punctuation; spaces: at white space alone."""


def caption_tokens(text: str, split: Split) -> list[str]:
    """Returns the tokens of a caption, of which the first MAX_CHARACTERS characters count."""
    text = text[:MAX_CHARACTERS]
    if split == "spaces":
        return text.split()
    text = "".join(character for character in text.lower() if character <= "\uffff").translate(_REPLACED)
    tokens = [part for token in _TOKEN.findall(text) for part in _parts(token)]
    return [token for token in tokens if token not in _PUNCTUATION]


def ngrams(tokens: Sequence[str]) -> NGrams:
    """Returns {n-gram: number} of one to MAX_ORDER tokens."""
    orders = range(1, MAX_ORDER + 1)
    return Counter(tuple(tokens[i : i + n]) for n in orders for i in range(len(tokens) - n + 1))


def _parts(token: str) -> list[str]:
    """Returns a token without its clitics, and those: can't is ca n't."""
    if token in _SPLIT:
        return list(_SPLIT[token])
    clitics: list[str] = []
    while "'" in token and token != "o'clock" and (found := _CLITIC.search(token)) and found.start() > 0:
        token = token[: found.start()]
        clitics.insert(0, found[0])
    words = [token] if token == "o'clock" or token.startswith("'") else token.replace("'", " ' ").split()
    return [*words, *clitics]
