"""Pairs of an answer's number and the true one, and their correlation."""

from collections.abc import Iterable, Sequence
from math import nan

import numpy as np
from numpy.typing import NDArray

from fvl_lightning.core.errors import DataError
from fvl_lightning.evaluation.metrics.base import Reference
from fvl_lightning.evaluation.metrics.texts.numbers import first_number

Pairs = Sequence[tuple[float, float]]


def check_numbers(metric: str, references: Iterable[Reference]) -> None:
    """Checks that every question has one true answer with a number in it; DataError where one has not."""
    for reference in references:
        if len(reference.answers) != 1 or first_number(reference.answers[0]) is None:
            shown = ", ".join(map(repr, reference.answers))[:100] or "no answer"
            where = f"metric {metric}: the answer to {reference.question[:100]!r}"
            raise DataError(f"{where} must be a number, not {shown}")


def pearson(pairs: Pairs) -> float:
    """Returns the linear correlation; NaN for fewer than two pairs, and where one side is constant."""
    return _correlation(*np.asarray(pairs, dtype=np.float64).reshape(-1, 2).T)


def spearman(pairs: Pairs) -> float:
    """Returns the correlation of the ranks, equal numbers having the mean of theirs; NaN as for `pearson`."""
    found, true = np.asarray(pairs, dtype=np.float64).reshape(-1, 2).T
    return _correlation(_ranks(found), _ranks(true))


def _correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    if len(one) < 2:
        return nan
    one, other = _standard(one), _standard(other)
    scale = float(np.sqrt((one @ one) * (other @ other)))
    return float(np.clip((one @ other) / scale, -1, 1)) if scale else nan


def _standard(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the differences from the mean, divided by the largest one, so that their squares stay finite."""
    values = values / (np.abs(values).max() or 1.0)
    values = values - values.mean()
    largest = np.abs(values).max()
    # Rounding of the mean is no variation.
    return values / largest if largest > 1e-12 else np.zeros_like(values)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: NDArray[np.float64] = (ends - (counts - 1) / 2)[inverse]
    return ranks
