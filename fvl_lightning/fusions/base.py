"""What a fusion must be, and the one step that most of them share."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.types import FeatureSpec, FusionOutput


class Fusion(nn.Module, ABC):
    """Joins feature sources that lie on one grid.

    A subclass is built from its Config and the sources' specs, sets `output`, and keeps all its randomness in modules
    with `reset_parameters()` (its own raw parameters included), since models are built without memory first.
    """

    output: FeatureSpec
    """What `forward` returns per image."""

    def __init__(self, config: Any, sources: dict[str, FeatureSpec]) -> None:
        super().__init__()
        if not sources:
            raise ConfigError("fusion: there is no source to fuse; name at least one in encoder.sources")
        self.config = config
        self.sources = sources

    @abstractmethod
    def forward(self, sources: dict[str, Tensor]) -> FusionOutput:
        """{source: [I, N, D_source]} -> features [I, N_out, D_out] and diagnostics."""


class CommonWidth(nn.Module):
    """Brings every source to width `dim`: a Linear where its own width differs, nothing where it is the same."""

    def __init__(self, sources: dict[str, FeatureSpec], dim: int | None) -> None:
        super().__init__()
        self.dim = dim if dim is not None else next(iter(sources.values())).dim
        self.projections = nn.ModuleDict(
            {name: nn.Linear(spec.dim, self.dim) for name, spec in sources.items() if spec.dim != self.dim}
        )

    def forward(self, sources: dict[str, Tensor]) -> list[Tensor]:
        """{source: [I, N, D_source]} -> a list of [I, N, D] in the order of the sources."""
        return [self.projections[name](x) if name in self.projections else x for name, x in sources.items()]


def source_masses(weights: Tensor, sources: dict[str, FeatureSpec]) -> dict[str, Tensor]:
    """Weights over sources [..., K] -> {"mass/<source>": scalar}, the mean share of each, detached.

    Of weights per place, [I, N, K] or [I, N, heads, K], also {"map/<source>": [I, N]}, the share of each there.
    """
    weights = weights.detach().float()
    shares = weights.flatten(0, -2).mean(0)
    masses = {f"mass/{name}": share for name, share in zip(sources, shares, strict=True)}
    if weights.ndim < 3:
        return masses
    places = weights.flatten(2, -2).mean(2) if weights.ndim > 3 else weights
    return masses | {f"map/{name}": share for name, share in zip(sources, places.unbind(-1), strict=True)}
