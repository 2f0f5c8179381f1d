"""DeepStack: the first source replaces the placeholders, and each further one enters an inner layer."""

from dataclasses import dataclass

from torch import Tensor

from fvl_lightning.core.config.fields import number
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.registry import register
from fvl_lightning.core.types import FeatureSpec, FusionOutput
from fvl_lightning.fusions.base import Fusion


@register("fusion", "deepstack")
class DeepstackFusion(Fusion):
    """h + P_l(x_k) for the hidden states h at the image's places in front of block l, for all x_k but the first.

    Each layer has a projector P_l of its own, as in Qwen3-VL. DeepStack is arXiv 2406.04334.
    """

    @dataclass
    class Config:
        """Fields of the fusion."""

        layers: list[int] = number(default_factory=list, at_least=1)
        """Blocks of the language model that the further sources enter, one for each; empty for 1, 2, 3 and so on."""

    def __init__(self, config: Config, sources: dict[str, FeatureSpec]) -> None:
        super().__init__(config, sources)
        (_, self.output), *further = sources.items()
        layers = config.layers or list(range(1, len(sources)))
        if len(layers) != len(further) or len(set(layers)) < len(layers):
            raise ConfigError(
                f"fusion.layers: {len(further)} sources after the first need {len(further)} different layers, found "
                f"{layers}"
            )
        self.layer_of = {name: layer for (name, _), layer in zip(further, layers, strict=True)}
        self.inner_layers = {self.layer_of[name]: spec for name, spec in further}

    def forward(self, sources: dict[str, Tensor]) -> FusionOutput:
        """Returns the first source [I, N, D], and the others for their layers, for {source: [I, N, D_source]}."""
        inner = {layer: sources[name] for name, layer in self.layer_of.items()}
        return FusionOutput(next(iter(sources.values())), inner_layers=inner)
