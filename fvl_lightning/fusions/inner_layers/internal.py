"""Internal fusion: sources enter inner layers of the language model, directly or through cross-attention."""

from dataclasses import dataclass
from typing import Literal

from fvl_lightning.core.registry import register
from fvl_lightning.core.types import FeatureSpec
from fvl_lightning.fusions.inner_layers.deepstack import DeepstackFusion


@register("fusion", "internal")
class InternalFusion(DeepstackFusion):
    """modular: h + tanh(g_l) Attention_l(h, P_l(x_k)); direct: h + P_l(x_k), at the image's places in front of block l.

    These are the two internal fusions of arXiv 2503.06063. The first source replaces the placeholders.
    """

    @dataclass
    class Config(DeepstackFusion.Config):
        """Fields of the fusion."""

        mode: Literal["direct", "modular"] = "modular"
        """direct adds the features to the hidden states; modular lets the hidden states attend to them."""

    def __init__(self, config: Config, sources: dict[str, FeatureSpec]) -> None:
        super().__init__(config, sources)
        self.injection = "cross_attention" if config.mode == "modular" else "add"
