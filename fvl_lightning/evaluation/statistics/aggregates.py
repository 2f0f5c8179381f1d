"""Bootstrap draws of any number that a metric reports, over clusters of questions.

Means are resampled by their sums (means.py). A number that is not a mean, such as F1, is computed again for each draw.
Most metrics have states that are sums over answers. These are summed once per cluster, and a draw is a weighted sum of
them. Other metrics keep data of every answer, which is concatenated for each draw; MAX_DRAWN_ANSWERS then limits the
number of draws.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from math import nan
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fvl_lightning.evaluation.metrics.averages import OVER_KINDS, OVER_QUESTIONS
from fvl_lightning.evaluation.metrics.base import AnswerMetric, KindScores
from fvl_lightning.evaluation.statistics.means import group_draws, mean_draws
from fvl_lightning.evaluation.statistics.resampling import Array, Resamples
from fvl_lightning.evaluation.tasks.question import TaskQuestion
from fvl_lightning.evaluation.tasks.result import TaskSample

STATE_DRAWS = 1_000
"""Draws for a number that is computed from summed states."""
MAX_DRAWN_ANSWERS = 500_000
"""Limit of the answers whose states are concatenated, over all draws of all models."""
FEWEST_DRAWS = 50
"""With fewer draws no interval is computed."""


def cluster_of(question: TaskSample | TaskQuestion) -> str:
    """Returns the cluster of a question; a question without one is its own cluster."""
    return question.cluster or f"question {question.id}"


def clusters_of(samples: Sequence[TaskSample]) -> list[str]:
    """Returns the cluster of each question."""
    return [cluster_of(sample) for sample in samples]


def is_mean(metric: AnswerMetric, name: str) -> bool:
    """Returns whether a number of the metric is a mean of the answers' scores."""
    return metric.is_mean and name in (OVER_KINDS, OVER_QUESTIONS)


def aggregate(metric: AnswerMetric, samples: Iterable[TaskSample]) -> KindScores:
    """Returns the scores of answers, without synchronisation over ranks: this process has all answers.

    Args:
        metric: built for the kinds of the questions; it is reset.
        samples: the answers.
    """
    _fill(metric, samples)
    return _computed(metric)


def number_draws(
    models: Sequence[Sequence[TaskSample]], metric: AnswerMetric, name: str, resamples: Resamples
) -> Array:
    """Returns a number `[1 + r, M]` of the metric for every model: the observed one, then that of each draw.

    All models are scored on the same draws. There are R draws of a mean, and fewer of other numbers.

    Args:
        models: the answers of M models to the same Q questions in one order.
        metric: built for the kinds of the questions; it is reset.
        name: a number that KindScores.average returns.
        resamples: R draws of the clusters of the questions.
    """
    if is_mean(metric, name):
        kinds = [sample.kind for sample in models[0]] if name == OVER_KINDS else None
        return mean_draws(_scores(models), resamples, kinds)
    return _other_draws(models, metric, name, resamples, [""] * len(models[0]))[1][..., 0]


def number_draws_by_group(
    models: Sequence[Sequence[TaskSample]],
    metric: AnswerMetric,
    name: str,
    resamples: Resamples,
    groups: Sequence[str],
) -> tuple[list[str], Array]:
    """Returns the groups, sorted, and a number of the metric `[1 + r, M, G]` within each.

    A macro average within a group is the mean over its questions, since a group may have no questions of some kinds.

    Args:
        models: see number_draws; also metric, name and resamples.
        groups: the group of each question.
    """
    if is_mean(metric, name):
        return group_draws(_scores(models), resamples, groups)
    return _other_draws(models, metric, name, resamples, groups)


def _scores(models: Sequence[Sequence[TaskSample]]) -> list[list[float]]:
    return [[sample.score for sample in samples] for samples in models]


def _other_draws(
    models: Sequence[Sequence[TaskSample]],
    metric: AnswerMetric,
    name: str,
    resamples: Resamples,
    groups: Sequence[str],
) -> tuple[list[str], Array]:
    """Returns the groups, and the draws `[1 + r, M, G]` of a number that is not a mean."""
    names, group = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)
    fewer = resamples.limited(STATE_DRAWS)
    totals = [_state_totals(metric, samples, fewer, group) for samples in models]
    if all(table is not None for table in totals):
        sums = fewer.sums(np.stack([table for table in totals if table is not None], axis=1))
        values = [[[_number(metric, name, vector) for vector in row] for row in draw] for draw in sums]
        return names.tolist(), np.array(values)
    draws = min(STATE_DRAWS, MAX_DRAWN_ANSWERS // max(1, len(models) * len(models[0])))
    fewer = resamples.limited(draws if draws >= FEWEST_DRAWS else 0)
    columns = [_put_together(metric, name, samples, fewer, group) for samples in models]
    drawn = min(map(len, columns))
    return names.tolist(), np.stack([column[:drawn] for column in columns], axis=1)


def _put_together(
    metric: AnswerMetric, name: str, samples: Sequence[TaskSample], resamples: Resamples, group: NDArray[np.intp]
) -> Array:
    """Returns a number `[1 + r, G]` from the drawn answers' states; r is 0 if these do not add up to the metric."""
    states, groups = _AnswerStates(metric, samples), int(group.max()) + 1

    def numbers(drawn: Iterable[tuple[int, int]]) -> list[float]:
        by_group: dict[int, list[tuple[int, int]]] = {}
        for place, copy in drawn:
            by_group.setdefault(int(group[place]), []).append((place, copy))
        return [states.number(name, by_group[number]) if number in by_group else nan for number in range(groups)]

    members = [np.flatnonzero(resamples.cluster == cluster).tolist() for cluster in range(resamples.clusters)]
    rows = [numbers((place, 0) for place in range(len(samples)))]
    whole = [
        aggregate(metric, [samples[place] for place in np.flatnonzero(group == number).tolist()]).average(name)
        for number in range(groups)
    ]
    if not np.allclose(rows[0], whole, equal_nan=True):
        return np.array([whole])
    for weights in resamples.weights():
        for weight in weights.astype(int):
            drawn = np.flatnonzero(weight).tolist()
            rows.append(numbers((place, copy) for c in drawn for copy in range(weight[c]) for place in members[c]))
    return np.array(rows)


class _AnswerStates:
    """States of a metric after each single answer, which are combined for any set of answers."""

    def __init__(self, metric: AnswerMetric, samples: Sequence[TaskSample]) -> None:
        self._metric, self._samples = metric, samples
        self._kept: dict[tuple[int, int], dict[str, Any]] = {}

    def number(self, name: str, answers: Sequence[tuple[int, int]]) -> float:
        """Returns the number `name` of a set of answers, given as (index of the sample, copy of its cluster)."""
        parts = [self._states(place, copy) for place, copy in answers]
        for state, first in parts[0].items():
            values = [part[state] for part in parts]
            together = list(chain.from_iterable(values)) if isinstance(first, list) else torch.stack(values).sum(0)
            setattr(self._metric, state, together)
        return float(_computed(self._metric).average(name))

    def _states(self, place: int, copy: int) -> dict[str, Any]:
        if (place, copy) not in self._kept:
            sample = self._samples[place]
            if copy:  # a cluster that is drawn twice has groups of its own
                reference = replace(sample.reference, group=f"{sample.reference.group} copy {copy}")
                sample = replace(sample, reference=reference)
            _fill(self._metric, [sample])
            states = self._metric.metric_state.items()
            self._kept[place, copy] = {
                state: list(value) if isinstance(value, list) else value.clone() for state, value in states
            }
        return self._kept[place, copy]


def _state_totals(
    metric: AnswerMetric, samples: Sequence[TaskSample], resamples: Resamples, group: NDArray[np.intp]
) -> Array | None:
    """Returns the metric's states `[I, G, S]` by cluster and group; None if they are not sums over answers."""
    _fill(metric, samples)
    whole = _packed(metric)
    if whole is None:
        return None
    totals = np.zeros((resamples.clusters, int(group.max()) + 1, len(whole)))
    cells: dict[tuple[int, int], list[TaskSample]] = {}
    for sample, cluster, number in zip(samples, resamples.cluster.tolist(), group.tolist(), strict=True):
        cells.setdefault((cluster, number), []).append(sample)
    for cell, answers in cells.items():
        _fill(metric, answers)
        vector = _packed(metric)
        if vector is None:
            return None
        totals[cell] = vector
    return totals if np.allclose(totals.sum((0, 1)), whole, equal_nan=True) else None


def _fill(metric: AnswerMetric, samples: Iterable[TaskSample]) -> None:
    metric.reset()
    for sample in samples:
        metric.update_scored(sample.kind, sample.prediction, sample.reference, sample.score)


def _computed(metric: AnswerMetric) -> KindScores:
    return type(metric).compute(metric)  # not that of the instance, which keeps results and waits for other ranks


def _packed(metric: AnswerMetric) -> Array | None:
    """Returns all states as one vector; None if one of them is a list."""
    states: list[Any] = list(metric.metric_state.values())
    if not states or not all(isinstance(state, Tensor) for state in states):
        return None
    return np.concatenate([np.asarray(state.detach().cpu(), dtype=np.float64).ravel() for state in states])


def _number(metric: AnswerMetric, name: str, vector: Array) -> float:
    """Returns a number computed from packed states."""
    start = 0
    for state, value in list(metric.metric_state.items()):
        size = value.numel()
        part = torch.from_numpy(vector[start : start + size].copy()).reshape(value.shape)
        setattr(metric, state, part.to(value.dtype))
        start += size
    return float(_computed(metric).average(name))
