"""Numbers in texts."""

import re
from math import isfinite

MAX_CHARACTERS = 1_000
"""Characters of the longest text that is read as one number, and those in which a number is looked for."""
_NUMBER = re.compile(
    r"(?<![\w.,])[-+\u2212]?(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,2})?|(?<![\w.,])[-+\u2212]?\.\d+"
)


def as_number(text: str) -> float | None:
    """Returns a text as a number, as Python reads it; None if it is not one or has over MAX_CHARACTERS characters."""
    if len(text) > MAX_CHARACTERS:
        return None
    try:
        return float(text)
    except ValueError:
        return None


def first_number(text: str) -> float | None:
    """Returns the first finite number in a text, such as -3.5 in "about -3.5 m", or 1200 in "1,200"; None without."""
    found = _NUMBER.search(text[:MAX_CHARACTERS])
    value = as_number(found[0].replace(",", "").replace("\u2212", "-")) if found else None
    return value if value is not None and isfinite(value) else None
