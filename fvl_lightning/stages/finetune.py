"""Training of fusion, projector and language model on conversations (the second stage of arXiv 2412.04424)."""

from dataclasses import dataclass
from typing import ClassVar

from fvl_lightning.core.registry import register
from fvl_lightning.stages.language import LanguageStage


@register("stage", "finetune")
class FinetuneStage(LanguageStage):
    """Conversations; the encoder is frozen."""

    @dataclass
    class Config:
        """Nothing to set."""

    TRAINABLE: ClassVar = {"encoder": "frozen", "fusion": "full", "projector": "full", "language_model": "full"}
