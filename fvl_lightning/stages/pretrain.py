"""End-to-end training of all components on captions (the first stage of arXiv 2412.04424, section 9)."""

from dataclasses import dataclass
from typing import ClassVar

from fvl_lightning.core.registry import register
from fvl_lightning.stages.language import LanguageStage


@register("stage", "pretrain")
class PretrainStage(LanguageStage):
    """Captions; all components train, or with `trainable: {encoder: frozen}` all but the encoder."""

    @dataclass
    class Config:
        """Nothing to set."""

    TRAINABLE: ClassVar = {"encoder": "full", "fusion": "full", "projector": "full", "language_model": "full"}
