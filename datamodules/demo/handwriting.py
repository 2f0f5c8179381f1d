"""Real handwriting without a download: the 1,797 scans of 8 x 8 pixels that come with scikit-learn (UCI digits)."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fvl_lightning.core.errors import ConfigError


@lru_cache(maxsize=1)
def load_scans() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All scans [1797, 8, 8] (ink 0-255) and the digit each one shows [1797].

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
    """The scans of one digit that belong to a split: of every ten, eight train, one validation, one test."""
    _, targets = load_scans()
    # By the rank within the digit: the scans come in the order 0, 1, ... 9, so an index modulo ten would pick digits.
    remainders = {"train": range(8), "validation": (8,)}.get(split, (9,))
    return tuple(int(i) for rank, i in enumerate(np.flatnonzero(targets == digit)) if rank % 10 in remainders)
