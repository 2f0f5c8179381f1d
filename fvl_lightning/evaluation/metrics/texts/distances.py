"""Edit distance and longest common subsequence by bit-parallel algorithms.

Both keep a row of the table in the bits of one integer (Hyyrö, 2003 and 2004), so that a step costs one addition. Texts
are not trusted and are cut at `MAX_CHARACTERS` and `MAX_TOKENS`, which bounds the time at about a second.
"""

from collections.abc import Hashable, Sequence

MAX_CHARACTERS = 20_000
"""Characters of a text that are compared one by one."""
MAX_TOKENS = 20_000
"""Tokens of a text that are compared one by one."""


def edit_distance(one: str, other: str) -> int:
    """Returns the number of characters to insert, delete or replace (Levenshtein), of texts cut at MAX_CHARACTERS."""
    pattern, text = sorted((one[:MAX_CHARACTERS], other[:MAX_CHARACTERS]), key=len)
    if not pattern:
        return len(text)
    places = _places(pattern)
    every, last = (1 << len(pattern)) - 1, 1 << (len(pattern) - 1)
    # Bit i of `up` and `down`: the distance grows or shrinks by one from character i - 1 to i of the pattern.
    up, down, distance = every, 0, len(pattern)
    for character in text:
        equal = places.get(character, 0)
        vertical = equal | down
        horizontal = (((equal & up) + up) ^ up) | equal
        right, left = down | (every & ~(horizontal | up)), up & horizontal
        if right & last:
            distance += 1
        elif left & last:
            distance -= 1
        right, left = (right << 1 | 1) & every, left << 1 & every
        up, down = left | (every & ~(vertical | right)), right & vertical
    return distance


def common_subsequence(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """Returns the length of the longest common subsequence, of sequences cut at MAX_TOKENS."""
    pattern, text = sorted((one[:MAX_TOKENS], other[:MAX_TOKENS]), key=len)
    places, every = _places(pattern), (1 << len(pattern)) - 1
    # Bit i is zero where the length grows from element i - 1 to i of the pattern.
    row = every
    for element in text:
        if equal := places.get(element, 0):
            found = row & equal
            row = ((row + found) | (row - found)) & every
    return len(pattern) - row.bit_count()


def _places(pattern: Sequence[Hashable]) -> dict[Hashable, int]:
    """Returns {element: integer with a bit for each of its places}."""
    digits: dict[Hashable, bytearray] = {}
    for place, element in enumerate(pattern):
        bits = digits.setdefault(element, bytearray())
        if len(bits) <= place >> 3:
            bits.extend(bytes((place >> 3) + 1 - len(bits)))
        bits[place >> 3] |= 1 << (place & 7)
    return {element: int.from_bytes(bits, "little") for element, bits in digits.items()}
