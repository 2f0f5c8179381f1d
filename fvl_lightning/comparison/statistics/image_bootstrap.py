"""Bootstrap over images: how a difference between trained models would vary over new images.

Questions on one image tend to be right or wrong together, so they are drawn together. The models are fixed: these
intervals do not cover training again with other seeds, and verdicts.py does not cover new images.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fvl_lightning.comparison.result_files.statistics import ImageInterval
from fvl_lightning.core.errors import DataError

Array = NDArray[np.float64]

LABEL = "these trained models, new images"
"""Label of these intervals wherever they are shown."""

RESAMPLES = 10_000
MAX_WEIGHTS = 4_000_000
"""Resampling weights of images held in memory at once, 8 bytes each."""


def image_intervals(
    scores: Mapping[str, ArrayLike],
    images: Sequence[int],
    baseline: str,
    kinds: Sequence[str] | None = None,
    alpha: float = 0.05,
    seed: int = 0,
) -> dict[str, ImageInterval]:
    """Returns the interval of every arm but the baseline, each on its own at 1 - alpha; NaN for a single image.

    An arm's score is the mean over all questions or, with `kinds`, the average of the means of all kinds, as in
    AnswerMetric. All arms are scored on the same draws, so what makes an image hard for all of them cancels.

    Args:
        scores: {arm: score of every answer `[seeds, Q]`}, the same Q questions in one order for all arms.
        images: the image of each of the Q questions.
        kinds: the kind of each of the Q questions.
        seed: the seed of the draws.

    Raises:
        DataError: an arm has no score, or another number of questions than there are `images`.
    """
    by_arm = [_mean_over_seeds(arm, table, len(images)) for arm, table in scores.items()]
    points, asked = _sums_by_image(np.stack(by_arm), images, kinds)
    number = len(asked)
    estimates = _scores(np.ones((1, number)), points, asked)[0]
    generator = np.random.default_rng(seed)
    size = max(1, MAX_WEIGHTS // number)
    chunks = [min(size, RESAMPLES - start) for start in range(0, RESAMPLES, size)]
    weights = (generator.multinomial(number, np.full(number, 1 / number), chunk).astype(np.float64) for chunk in chunks)
    draws = np.concatenate([_scores(chunk, points, asked) for chunk in weights])
    baseline_index = list(scores).index(baseline)
    differences = draws - draws[:, [baseline_index]]
    low, high = np.quantile(differences, [alpha / 2, 1 - alpha / 2], axis=0)
    if number == 1:  # every draw is this image: its interval of no length would look like certainty
        low, high = np.full_like(low, np.nan), np.full_like(high, np.nan)
    return {
        arm: ImageInterval(float(estimates[i] - estimates[baseline_index]), (float(low[i]), float(high[i])))
        for i, arm in enumerate(scores)
        if arm != baseline
    }


def _mean_over_seeds(arm: str, scores: ArrayLike, questions: int) -> Array:
    table = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    if table.shape[-1] != questions or not table.size:
        raise DataError(f"arm {arm} has answers to {table.shape[-1]} questions, expected {questions}, the same for all")
    return table.mean(0)


def _sums_by_image(scores: Array, images: Sequence[int], kinds: Sequence[str] | None) -> tuple[Array, Array]:
    """Returns sums `[A, I, K]` of `scores` `[A, Q]` and numbers of questions `[I, K]`; K is 1 without `kinds`."""
    distinct, image = np.unique(np.asarray(images), return_inverse=True)
    names, kind = np.unique(np.asarray(kinds if kinds is not None else [""] * len(images)), return_inverse=True)
    cell = image * len(names) + kind
    cells = len(distinct) * len(names)
    asked = np.bincount(cell, minlength=cells).reshape(len(distinct), len(names)).astype(np.float64)
    points: Array = np.stack([np.bincount(cell, weights=row, minlength=cells).reshape(asked.shape) for row in scores])
    return points, asked


def _scores(weights: Array, points: Array, asked: Array) -> Array:
    """Returns the scores `[R, A]`, averaged over the kinds drawn, with image i counted `weights` `[R, I]` times."""
    weighted = np.moveaxis(weights @ points, 0, 1)
    number = (weights @ asked)[:, None, :]
    # A rare kind may not be drawn at all; AnswerMetric also averages over the kinds that were asked.
    drawn = number > 0
    return np.divide(weighted, number, out=np.zeros_like(weighted), where=drawn).sum(-1) / drawn.sum(-1)
