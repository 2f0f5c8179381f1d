"""Mean scores of models over clusters of questions: of groups of questions, and of all."""

from collections.abc import Hashable, Sequence
from math import sqrt

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from fvl_lightning.evaluation.statistics.resampling import ALPHA, Array, Estimate, Resamples, ratio, unseen


def mean_draws(scores: ArrayLike, resamples: Resamples, kinds: Sequence[str] | None = None) -> Array:
    """Returns the mean score `[1 + R, M]` of every model, on the questions as they are and in every draw.

    All models are scored on the same draws, so what makes a question hard for all of them cancels in a difference.

    Args:
        scores: the score of every answer, `[M, Q]`; NaN for an answer that has none and is left out.
        resamples: the draws of the clusters of the Q questions.
        kinds: the kind of each question; a score is then the average of the means of the kinds that are drawn.
    """
    table = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    means = group_draws(table, resamples, kinds if kinds is not None else [""] * table.shape[1])[1]
    # A rare kind may not be drawn at all; AnswerMetric also averages over the kinds that were asked.
    asked = np.isfinite(means)
    return ratio(np.where(asked, means, 0.0).sum(-1), asked.sum(-1).astype(np.float64))


def group_draws(scores: ArrayLike, resamples: Resamples, groups: Sequence[str]) -> tuple[list[str], Array]:
    """Returns the names of the groups, sorted, and the mean score `[1 + R, M, G]` in each; NaN where none is drawn.

    Args:
        scores: as for mean_draws.
        resamples: as for mean_draws.
        groups: the group of each of the Q questions.
    """
    table = np.atleast_2d(np.asarray(scores, dtype=np.float64)).T
    names, group = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)
    known = np.isfinite(table)
    totals = resamples.totals(np.stack([np.where(known, table, 0.0), known], axis=-1), group)
    sums = np.swapaxes(resamples.sums(totals), 1, 2)
    return names.tolist(), ratio(sums[..., 0], sums[..., 1])


def mean_estimate(
    values: ArrayLike, clusters: Sequence[Hashable], alpha: float = ALPHA, reach: float = 0.0
) -> Estimate:
    """Returns the mean of finite values of questions, with a cluster-robust t interval; no draws are needed.

    It is used for many intervals at a small alpha, for which a bootstrap would need many draws.

    Args:
        values: one number per question, at least one.
        clusters: the cluster of each question.
        alpha: one minus the level.
        reach: see resampling.estimate; used if all clusters deviate equally.
    """
    table, own = np.asarray(values, dtype=np.float64), Resamples(clusters)
    mean, number = float(table.mean()), own.clusters
    if number < 2:
        return Estimate(mean)
    deviations = own.totals(table - mean)[:, 0]
    half = sqrt(float(np.square(deviations).sum()) * number / (number - 1)) / len(table)
    half *= float(special.stdtrit(number - 1, 1 - alpha / 2))
    if np.allclose(deviations, 0):
        half = unseen(number, alpha, reach)
    return Estimate(mean, (mean - half, mean + half))
