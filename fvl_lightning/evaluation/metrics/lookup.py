"""Finds metrics and scores by their names, as YAML files, reports and MLflow write them.

A metric is named as it is registered, such as accuracy; a score also names the average, such as accuracy/macro.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fvl_lightning.core import registry
from fvl_lightning.core.errors import ConfigError, unknown_name
from fvl_lightning.evaluation.metrics.averages import OVER_KINDS

if TYPE_CHECKING:
    from fvl_lightning.evaluation.metrics.base import AnswerMetric

DEFAULT_METRIC = "accuracy"
"""The metric of answers unless another one is named."""
DEFAULT_SCORE = f"{DEFAULT_METRIC}/{OVER_KINDS}"
"""The score that arms are compared by unless a comparison file names another."""


def split_score(score: str) -> tuple[str, str]:
    """Returns (metric, average) of a score's name."""
    metric, _, average = score.partition("/")
    return metric, average


def build_metric(metric: str, kinds: Iterable[str] = ()) -> "AnswerMetric":
    """Builds the registered metric with its defaults, for questions of these kinds.

    Raises:
        ConfigError: no metric is registered by that name.
    """
    component = registry.component("metric", metric)
    return component(component.Config(), kinds)


def metric_of(score: str, where: str = "metric") -> "type[AnswerMetric]":
    """Returns the class of the metric that a score's name begins with.

    Args:
        score: a name such as accuracy/macro.
        where: the place of the name, for messages.

    Raises:
        ConfigError: no metric is registered by that name, it has no such average, or only a task can set what it needs.
    """
    name, average = split_score(score)
    found: type[AnswerMetric] = registry.component("metric", name, where)
    if found.needs:
        raise ConfigError(f"{where}: {name} needs {' and '.join(found.needs)}, which only a task can set")
    if average not in found.averages:
        raise unknown_name("metric", score, [f"{name}/{known}" for known in found.averages], where)
    return found
