"""Metrics of answers that are numbers."""

from fvl_lightning.evaluation.metrics.numbers.correlation import CorrelationMetric
from fvl_lightning.evaluation.metrics.numbers.regression import RegressionMetric

__all__ = ["CorrelationMetric", "RegressionMetric"]
