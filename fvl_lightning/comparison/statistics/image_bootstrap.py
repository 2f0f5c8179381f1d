"""How a difference between trained models would vary over new images: a bootstrap over images, not over questions.

Questions on one image are right or wrong together, so they are drawn together. The models stay as they are: these
intervals say nothing of what training again with other seeds would give, and verdicts.py says nothing of new images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fvl_lightning.core.errors import DataError

Array = NDArray[np.float64]

LABEL = "these trained models, new images"
"""What stands over these intervals wherever they are shown."""

RESAMPLES = 10_000
WEIGHTS_AT_ONCE = 4_000_000
"""Weights of resampled images held in memory at once, 8 bytes each."""


@dataclass(frozen=True)
class ImageInterval:
    """Arm minus baseline on the images at hand, averaged over seeds, and its percentile interval over new images."""

    estimate: float
    interval: tuple[float, float]


def image_intervals(
    right: Mapping[str, ArrayLike],
    images: Sequence[int],
    baseline: str,
    kinds: Sequence[str] | None = None,
    alpha: float = 0.05,
    seed: int = 0,
) -> dict[str, ImageInterval]:
    """The interval of every arm but the baseline, each on its own at 1 - alpha.

    The score is the accuracy over all questions or, with `kinds`, its average over kinds, as in answers.accuracy. All
    arms are scored on the same draws, so that what makes an image hard for all of them cancels.

    Args:
        right: {arm: `[seeds, Q]` of 0 and 1 (or a score from 0 to 1)}, the same Q questions in one order for all arms.
        images: the image of each of the Q questions.
        kinds: the kind of each of the Q questions.
        seed: of the draws.

    Raises:
        DataError: an arm has no score, or another number of questions than there are `images`.
    """
    by_arm = [_mean_over_seeds(arm, scores, len(images)) for arm, scores in right.items()]
    points, asked = _sums_by_image(np.stack(by_arm), images, kinds)
    number = len(asked)
    estimates = _scores(np.ones((1, number)), points, asked)[0]
    generator = np.random.default_rng(seed)
    size = max(1, WEIGHTS_AT_ONCE // number)
    chunks = [min(size, RESAMPLES - start) for start in range(0, RESAMPLES, size)]
    weights = (generator.multinomial(number, np.full(number, 1 / number), chunk).astype(np.float64) for chunk in chunks)
    draws = np.concatenate([_scores(chunk, points, asked) for chunk in weights])
    place = list(right).index(baseline)
    differences = draws - draws[:, [place]]
    low, high = np.quantile(differences, [alpha / 2, 1 - alpha / 2], axis=0)
    return {
        arm: ImageInterval(float(estimates[i] - estimates[place]), (float(low[i]), float(high[i])))
        for i, arm in enumerate(right)
        if arm != baseline
    }


def _mean_over_seeds(arm: str, scores: ArrayLike, questions: int) -> Array:
    table = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    if table.shape[-1] != questions or not table.size:
        raise DataError(f"arm {arm} has answers to {table.shape[-1]} questions, expected {questions}, the same for all")
    return table.mean(0)


def _sums_by_image(right: Array, images: Sequence[int], kinds: Sequence[str] | None) -> tuple[Array, Array]:
    """Points `[A, I, K]` and questions asked `[I, K]` of `right` `[A, Q]`; one kind where none are named."""
    distinct, image = np.unique(np.asarray(images), return_inverse=True)
    names, kind = np.unique(np.asarray(kinds if kinds is not None else [""] * len(images)), return_inverse=True)
    cell = image * len(names) + kind
    cells = len(distinct) * len(names)
    asked = np.bincount(cell, minlength=cells).reshape(len(distinct), len(names)).astype(np.float64)
    points: Array = np.stack([np.bincount(cell, weights=row, minlength=cells).reshape(asked.shape) for row in right])
    return points, asked


def _scores(weights: Array, points: Array, asked: Array) -> Array:
    """`[R, A]`: accuracy averaged over the kinds drawn, with image i counted weights `[R, I]` times."""
    weighted = np.moveaxis(weights @ points, 0, 1)
    number = (weights @ asked)[:, None, :]
    # A rare kind may not be drawn at all; answers.accuracy averages over kinds that were asked, too.
    drawn = number > 0
    return np.divide(weighted, number, out=np.zeros_like(weighted), where=drawn).sum(-1) / drawn.sum(-1)
