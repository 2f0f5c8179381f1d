"""A language model that judges answers, behind an OpenAI-compatible endpoint."""

from fvl_lightning.evaluation.metrics.judge.judge import JudgeMetric

__all__ = ["JudgeMetric"]
