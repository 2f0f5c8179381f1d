"""Adjusts p values for the number of tests: Holm's method, and that of Benjamini and Hochberg."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]


def holm(p: Array) -> Array:
    """Adjusts p values by Holm's step-down method over the last axis (Holm 1979); NaN is never rejected but counted."""
    order = np.argsort(p, -1)
    steps = np.arange(p.shape[-1], 0, -1)
    stepped = np.minimum(np.maximum.accumulate(np.take_along_axis(p, order, -1) * steps, -1), 1)
    adjusted = np.empty_like(stepped)
    np.put_along_axis(adjusted, order, stepped, -1)
    return adjusted


def benjamini_hochberg(p: Any) -> Array:
    """Adjusts p values so that the share of false claims among all claims is bounded (Benjamini and Hochberg 1995)."""
    return np.asarray(stats.false_discovery_control(p))
