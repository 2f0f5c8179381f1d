"""Numbers and names in the sentences of reports."""

from collections.abc import Sequence
from math import isfinite


def listed(names: Sequence[str]) -> str:
    """Returns names as a sentence lists them: "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def with_range(value: float, interval: Sequence[float]) -> str:
    """Returns a number with the ends of its interval, such as "0.123 (0.100 to 0.150)"."""
    if not isfinite(value):
        return "not known"
    ends = f" ({interval[0]:.3f} to {interval[1]:.3f})" if all(map(isfinite, interval)) else ""
    return f"{value:.3f}{ends}"
