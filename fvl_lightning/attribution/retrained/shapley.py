"""The worth of each source, from the scores of all subsets of the sources.

v(S) is the score of a model that gets the sources S, and n the number of all sources N. A table of worths is an array
`[..., 2^n]`: the subset at place m has source i where bit i of m is set. Leading axes are separate tables, such as
those of seeds. A subset without a score is NaN, and so is every number that needs it.
"""

from collections.abc import Mapping, Sequence
from math import factorial

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Subset = frozenset[str]


def worth_table(scores: Mapping[Subset, ArrayLike], sources: Sequence[str]) -> Array:
    """Returns the table `[..., 2^n]` of scores `[...]` by subset; NaN where a subset has none.

    Args:
        scores: scores of one shape, at least one.
        sources: all n sources, in order.
    """
    shape = np.shape(next(iter(scores.values())))
    absent = np.full(shape, np.nan)
    return np.stack(
        [np.asarray(scores.get(subset, absent), dtype=np.float64) for subset in all_subsets(sources)], axis=-1
    )


def all_subsets(sources: Sequence[str]) -> list[Subset]:
    """Returns the 2^n subsets in the order of a table."""
    return [
        frozenset(source for i, source in enumerate(sources) if mask >> i & 1) for mask in range(2 ** len(sources))
    ]


def shapley_values(worth: Array) -> Array:
    """Returns the Shapley values `[..., n]` (Shapley 1953).

    phi_i = sum over S in N without i of |S|! (n - |S| - 1)! / n! * (v(S + i) - v(S)): the mean, over all orders in
    which the sources may be added, of what the score gains when i is added. They add up to v(N) - v({}).
    """
    n = _sources(worth)
    values = []
    for i in range(n):
        without = _subsets(n, i)
        weights = [factorial(_size(s)) * factorial(n - _size(s) - 1) / factorial(n) for s in without]
        values.append((worth[..., without | 1 << i] - worth[..., without]) @ np.array(weights))
    return np.stack(values, axis=-1)


def shapley_interactions(worth: Array) -> Array:
    """Returns the pairwise Shapley interaction indices `[..., n, n]`, zero on the diagonal (Grabisch and Roubens 1999).

    I_ij = sum over S in N without i and j of |S|! (n - |S| - 2)! / (n - 1)! *
    (v(S + i + j) - v(S + i) - v(S + j) + v(S)): the mean of what both together gain beyond the gains of each. It is
    negative for sources that stand in for each other, and zero where their gains add up.
    """
    n = _sources(worth)
    found = np.zeros((*worth.shape[:-1], n, n))
    for i in range(n):
        for j in range(i):
            without = _subsets(n, i, j)
            weights = [factorial(_size(s)) * factorial(n - _size(s) - 2) / factorial(n - 1) for s in without]
            one, other = without | 1 << i, without | 1 << j
            gain = worth[..., one | other] - worth[..., one] - worth[..., other] + worth[..., without]
            found[..., i, j] = found[..., j, i] = gain @ np.array(weights)
    return found


def leave_one_out(worth: Array) -> Array:
    """Returns v(N) - v(N without i), `[..., n]`: the loss when a source is left out of a training with all others."""
    n = _sources(worth)
    every = 2**n - 1
    return np.stack([worth[..., every] - worth[..., every ^ 1 << i] for i in range(n)], axis=-1)


def one_alone(worth: Array) -> Array:
    """Returns v({i}) - v({}), `[..., n]`: the gain of a training with one source over one with none."""
    return np.stack([worth[..., 1 << i] - worth[..., 0] for i in range(_sources(worth))], axis=-1)


def _sources(worth: Array) -> int:
    n = worth.shape[-1].bit_length() - 1
    if n < 1 or worth.shape[-1] != 2**n:
        raise ValueError(f"a table of the worths of subsets has 2^n entries, n of at least 1, not {worth.shape[-1]}")
    return n


def _subsets(n: int, *without: int) -> NDArray[np.int64]:
    """Returns the subsets of n sources that lack some."""
    return np.array([mask for mask in range(2**n) if not any(mask >> i & 1 for i in without)])


def _size(mask: np.int64) -> int:
    return int(mask).bit_count()
