"""Metrics of captions: BLEU, CIDEr and ROUGE-L as pycocoevalcap computes them, without Java."""

from fvl_lightning.evaluation.metrics.captions.bleu import BleuMetric
from fvl_lightning.evaluation.metrics.captions.cider import CiderMetric
from fvl_lightning.evaluation.metrics.captions.rouge_l import RougeLMetric

__all__ = ["BleuMetric", "CiderMetric", "RougeLMetric"]
