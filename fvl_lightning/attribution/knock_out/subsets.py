"""Subsets of the sources, each the sources that a model still gets."""

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

from fvl_lightning.core.errors import ConfigError

Subset = tuple[str, ...]
"""The sources that are kept, in the order of the model's."""
Subsets = Literal["single", "all"]
"""single: each source left out, each source alone, and none; all: every subset."""
MAX_SUBSETS = 64
"""The questions are asked once for each subset."""


def subsets_of(sources: Sequence[str], which: Subsets = "single") -> list[Subset]:
    """Returns the subsets that questions are asked with, the largest first, each once.

    Raises:
        ConfigError: all subsets are more than MAX_SUBSETS.
    """
    sizes = list(range(len(sources), -1, -1))
    if which == "all":
        if 2 ** len(sources) > MAX_SUBSETS:
            raise ConfigError(
                f"subsets: {len(sources)} sources have {2 ** len(sources)} subsets, at most {MAX_SUBSETS} are asked; "
                "take single, which leaves out one source, or all but one"
            )
    else:
        sizes = [size for size in sizes if size in (len(sources), len(sources) - 1, 1, 0)]
    return [kept for size in sizes for kept in combinations(sources, size)]


def without(sources: Sequence[str], *left_out: str) -> Subset:
    """Returns the subset without some sources."""
    return tuple(source for source in sources if source not in left_out)


def subset_name(kept: Subset, sources: Sequence[str]) -> str:
    """Returns the name of a subset in tables and texts."""
    missing = [source for source in sources if source not in kept]
    if not missing or not kept:
        return "no source" if missing else "all sources"
    return f"without {' and '.join(missing)}" if len(missing) <= len(kept) else f"only {' and '.join(kept)}"
