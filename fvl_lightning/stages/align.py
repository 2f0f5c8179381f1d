"""Training of fusion and projector between a frozen encoder and a frozen language model (LLaVA's first stage)."""

from dataclasses import dataclass
from typing import ClassVar

from fvl_lightning.core.registry import register
from fvl_lightning.stages.language import LanguageStage


@register("stage", "align")
class AlignStage(LanguageStage):
    """Captions; only fusion and projector train."""

    @dataclass
    class Config:
        """Nothing to set."""

    TRAINABLE: ClassVar = {"encoder": "frozen", "fusion": "full", "projector": "full", "language_model": "frozen"}
