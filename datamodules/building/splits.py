"""Chooses the split of a sample by its content, and advises where a split gets none because there are few images."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

MANY = 1000
"""With more different images than this, a split is not empty for the lack of them."""


def place_of(record: Mapping[str, Any], images: Sequence[bytes]) -> float:
    """Returns the place of a sample in [0, 1), a hash of its content: equal images give equal places.

    The smallest hash of several images decides, so that their order does not matter. Samples that share only some of
    their images can still have different places. A sample without images has the hash of its text.
    """
    text = json.dumps(record.get("messages") or record.get("caption"), sort_keys=True)
    digest = min(hashlib.sha256(content).digest() for content in images or [text.encode()])
    return int.from_bytes(digest[:8], "big") / 2**64


def split_at(place: float, splits: Mapping[str, float]) -> str:
    """Returns the split of a place: each has a stretch of [0, 1) of its fraction, in the order of their names."""
    # Sorted by name, so that their order in a recipe does not matter.
    *others, last = sorted(splits)
    for name in others:
        place -= splits[name]
        if place < 0:
            return name
    return last


def few_images(places: Sequence[float], splits: Mapping[str, float]) -> str:
    """Returns why some splits have no sample, and which fractions would give each one; nothing if every split has one.

    Args:
        places: the different places of all samples.
        splits: the fraction of each split.
    """
    empty = sorted(splits.keys() - {split_at(place, splits) for place in places})
    if not empty or not places:
        return ""
    there = f"{len(places)} different images (or texts without one)"
    why = f"{' and '.join(empty)} got no row: the rows have {there}, and rows with the same image stay together"
    better = _fractions(sorted(places), splits)
    if better is None:
        return f"{why}; add images, or name fewer splits"
    words = ", ".join(f"{name}: {fraction}" for name, fraction in better.items())
    counts = [split_at(place, better) for place in places]
    images = ", ".join(f"{counts.count(name)} to {name}" for name in better)
    return f'{why}; "splits={{{words}}}" would give {images}'


def _fractions(places: Sequence[float], splits: Mapping[str, float]) -> dict[str, float] | None:
    """Returns the fractions nearest to `splits`, with few digits, of which every split has one of the sorted places."""
    if len(places) < len(splits):
        return None
    names = sorted(splits)
    # Every split has at least one place, and the largest gives up what is too many.
    counts = [max(1, round(splits[name] * len(places))) for name in names]
    while (surplus := sum(counts) - len(places)) != 0:
        largest = counts.index(max(counts))
        counts[largest] -= max(-1, min(surplus, 1))
    cuts = [_between(places[end - 1], places[end]) for end in list(accumulate(counts))[:-1]]
    edges = [0.0, *cuts, 1.0]
    better = {name: round(end - start, 15) for name, (start, end) in zip(names, pairwise(edges), strict=True)}
    return better if {split_at(place, better) for place in places} == set(names) else None


def _between(low: float, high: float) -> float:
    """Returns the number with the fewest digits between `low` and `high`; sums of fractions may miss `high` itself."""
    for digits in range(1, 17):
        number = (math.ceil(high * 10**digits) - 1) / 10**digits
        if low < number < high:
            return number
    return high
