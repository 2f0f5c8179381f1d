"""Bootstrap over images: how a difference between trained models would vary over new images.

Questions on one image tend to be right or wrong together, so they are drawn together. The models are fixed: these
intervals do not cover training again with other seeds, and verdicts.py does not cover new images.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from fvl_lightning.comparison.result_files.statistics import ImageInterval
from fvl_lightning.core.errors import DataError
from fvl_lightning.evaluation.statistics.means import mean_draws
from fvl_lightning.evaluation.statistics.resampling import ALPHA, Array, Resamples, estimate

LABEL = "these trained models, new images"
"""Label of these intervals wherever they are shown."""


def image_intervals(
    scores: Mapping[str, ArrayLike],
    images: Sequence[int],
    baseline: str,
    kinds: Sequence[str] | None = None,
    alpha: float = ALPHA,
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
    by_arm = {arm: _mean_over_seeds(arm, table, len(images)) for arm, table in scores.items()}
    resamples = Resamples(images, seed=seed)
    draws = mean_draws(np.stack(list(by_arm.values())), resamples, kinds)
    base = draws[:, list(by_arm).index(baseline)]
    found = {arm: estimate(draws[:, i] - base, resamples.clusters, alpha) for i, arm in enumerate(by_arm)}
    return {arm: ImageInterval(entry.value, entry.interval) for arm, entry in found.items() if arm != baseline}


def _mean_over_seeds(arm: str, scores: ArrayLike, questions: int) -> Array:
    table = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    if table.shape[-1] != questions or not table.size:
        raise DataError(f"arm {arm} has answers to {table.shape[-1]} questions, expected {questions}, the same for all")
    return table.mean(0)
