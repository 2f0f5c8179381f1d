"""Real handwriting without a download: the 1,797 scans of 8 x 8 pixels in scikit-learn (UCI digits)."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fvl_lightning.core.errors import ConfigError


@lru_cache(maxsize=1)
def load_scans() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Returns all scans [1797, 8, 8] (ink 0-255) and their digits [1797].

    Raises:
        ConfigError: scikit-learn, an optional dependency, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ConfigError("the demo set's handwriting needs scikit-learn: pip install 'fvl-lightning[demo]'") from None
    scans = load_digits()
    return (scans.images * 255 / 16).round().astype(np.uint8), scans.target.astype(np.int64)


@lru_cache(maxsize=64)
def scans_of(digit: int, split: str) -> tuple[int, ...]:
    """Returns the scans of one digit in a split; eight of ten are train, one validation and one test."""
    _, targets = load_scans()
    # It uses the rank within the digit: scans come in the order 0, 1, ... 9, so their index modulo ten is their digit.
    remainders = {"train": range(8), "validation": (8,)}.get(split, (9,))
    return tuple(int(i) for rank, i in enumerate(np.flatnonzero(targets == digit)) if rank % 10 in remainders)
