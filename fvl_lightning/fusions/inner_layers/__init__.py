"""Fusions with features for inner layers of the language model."""

from fvl_lightning.fusions.inner_layers.deepstack import DeepstackFusion
from fvl_lightning.fusions.inner_layers.internal import InternalFusion

__all__ = ["DeepstackFusion", "InternalFusion"]
