"""Normalisation of short answers as the VQA challenge has it on EvalAI, which TextVQA, OK-VQA and VizWiz use, too."""

import re

_ONE_APOSTROPHE = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's "
    "isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've "
    "shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd "
    "there're there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've "
    "when's where'd where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all "
    "you'd you'll you're you've"
)
_SEVERAL_APOSTROPHES = (
    "couldn't've hadn't've he'd've it'd've mightn't've 'ow's'at she'd've shouldn't've somebody'd've someone'd've "
    "something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've"
)


def _spellings() -> dict[str, str]:
    """Returns {contraction that lacks one apostrophe: the contraction}."""
    found = {"somebody'd": "somebodyd"}  # the challenge's table has this one the wrong way round
    for contraction in f"{_ONE_APOSTROPHE} {_SEVERAL_APOSTROPHES}".split():
        for place, character in enumerate(contraction):
            if character == "'":
                found[contraction[:place] + contraction[place + 1 :]] = contraction
    return found


CONTRACTIONS = _spellings()
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"none": "0"} | {word: str(value) for value, word in enumerate(_NUMBERS)}
ARTICLES = frozenset(("a", "an", "the"))
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
MAX_FULL_STOPS = 32
"""Full stops that are removed from one answer: the challenge's script passes a flag of this value as a count."""
_FULL_STOP = re.compile(r"\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),+(?=\d)")


def normalised_answer(text: str) -> str:
    """Returns the answer as the challenge compares it: lower case, without articles and most punctuation, digits."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    return without_articles(without_punctuation(text))


def without_punctuation(text: str) -> str:
    """Removes marks that have a space beside them anywhere, and all if a number has a comma; others become spaces."""
    has_number = _COMMA_IN_NUMBER.search(text) is not None
    result = text
    for mark in PUNCTUATION:
        next_to_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if next_to_space or has_number else " ")
    return _FULL_STOP.sub("", result, count=MAX_FULL_STOPS)


def without_articles(text: str) -> str:
    """Returns the words in lower case with digits for numbers up to ten, apostrophes restored, and no article."""
    words = (DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
