"""The base class of fusions, and the projection to a common width that most of them share."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.types import FeatureSpec, FusionOutput


class Fusion(nn.Module, ABC):
    """Fuses feature sources that share one grid.

    A subclass is built from its Config and the specs of the sources, and sets `output`. All its parameters must be in
    modules with `reset_parameters()`, or it defines that method itself, since models are first built without memory.
    """

    output: FeatureSpec
    """The shape of the output for an image."""

    def __init__(self, config: Any, sources: dict[str, FeatureSpec]) -> None:
        super().__init__()
        if not sources:
            raise ConfigError("fusion: there is no source to fuse; name at least one in encoder.sources")
        self.config = config
        self.sources = sources

    @abstractmethod
    def forward(self, sources: dict[str, Tensor]) -> FusionOutput:
        """Returns features [I, N_out, D_out] and diagnostics for {source: [I, N, D_source]}."""


class CommonWidth(nn.Module):
    """Projects every source to width `dim` with a Linear layer, unless it has this width already."""

    def __init__(self, sources: dict[str, FeatureSpec], dim: int | None) -> None:
        super().__init__()
        self.dim = dim if dim is not None else next(iter(sources.values())).dim
        self.projections = nn.ModuleDict(
            {name: nn.Linear(spec.dim, self.dim) for name, spec in sources.items() if spec.dim != self.dim}
        )

    def forward(self, sources: dict[str, Tensor]) -> list[Tensor]:
        """Returns a list of [I, N, D], in the order of the sources, for {source: [I, N, D_source]}."""
        return [self.projections[name](x) if name in self.projections else x for name, x in sources.items()]


def source_weights(weights: Tensor, sources: dict[str, FeatureSpec]) -> dict[str, Tensor]:
    """Returns the diagnostics of weights over K sources: {"mass/<source>": scalar}, the mean weight of each, detached.

    Weights per position, [I, N, K] or [I, N, heads, K], also give {"map/<source>": [I, N]}, the weight at each.
    """
    weights = weights.detach().float()
    means = weights.flatten(0, -2).mean(0)
    diagnostics = {f"mass/{name}": mean for name, mean in zip(sources, means, strict=True)}
    if weights.ndim < 3:
        return diagnostics
    per_position = weights.flatten(2, -2).mean(2) if weights.ndim > 3 else weights
    return diagnostics | {f"map/{name}": values for name, values in zip(sources, per_position.unbind(-1), strict=True)}


source_masses = source_weights
"""The earlier name of `source_weights`, which fusions of users import."""
