"""Alignment of the feature sources to one grid, so that a fusion need not know about geometry."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from fvl_lightning.core.errors import ConfigError, unknown_name
from fvl_lightning.core.types import FeatureSpec
from fvl_lightning.fusions.base import resize_map


class AlignedSources(dict[str, Tensor]):
    """Sources as the alignment returns them, {source: [I, N, D_source]}.

    A model that gets them in place of the encoder's output does not align them again. Sources that are replaced behind
    the alignment therefore pass through every kind of fusion (replacement.py).
    """


class SourceAlignment(nn.Module):
    """Resamples every source to the grid of the first one, and optionally normalises it.

    Larger grids are averaged (adaptive mean), smaller ones interpolated (bilinear). Tokens before the map, such as a
    pooled token, pass unchanged, so that all sources must have the same number of them.

    Args:
        sources: {source: its shape}.
        normalize: whether to apply a LayerNorm to each source.
        native: whether every source keeps its own grid.
        fused: the sources that the fusion gets, in its order; a further mention is a copy with a LayerNorm of its own,
            <source>_copy_2. None for all; with none named, the fusion gets zeros in place of the first source.

    Raises:
        ConfigError: there is no such source, or one cannot be resampled to the first one's grid.
    """

    def __init__(
        self,
        sources: dict[str, FeatureSpec],
        normalize: bool,
        native: bool = False,
        fused: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.origins = _origins(sources, fused)
        """{name in the fusion: source of the encoder}; they differ for copies alone."""
        self.blank = fused is not None and not fused
        sources = {name: sources[origin] for name, origin in self.origins.items()}
        name, first = next(iter(sources.items()))
        for other, spec in sources.items() if not native else ():
            alike = (spec.tokens == first.tokens) if spec.grid is None or first.grid is None else True
            if not alike or spec.prefix != first.prefix:
                raise ConfigError(
                    f"encoder.sources: {other} has {spec.tokens} tokens on grid {spec.grid} and cannot be brought to "
                    f"{name}'s {first.tokens} tokens on grid {first.grid}"
                )
        self.sources = sources
        self.grid, self.prefix = None if native else first.grid, first.prefix
        aligned = {other: FeatureSpec(first.tokens, spec.dim, first.grid) for other, spec in sources.items()}
        self.specs = dict(sources) if native else aligned
        norms = {other: nn.LayerNorm(spec.dim) for other, spec in sources.items()}
        self.norms = nn.ModuleDict(norms if normalize else {})
        self._zeroed: frozenset[str] = frozenset()

    def keep(self, names: Collection[str]) -> None:
        """Sets all other sources to zero from here on, as source dropout does; ConfigError for an unknown name."""
        for name in names:
            if name not in self.origins.values():
                raise unknown_name("source", name, set(self.origins.values()), "--sources")
        self._zeroed = frozenset(name for name, origin in self.origins.items() if origin not in names)

    def forward(self, sources: dict[str, Tensor]) -> AlignedSources:
        """Returns {name in the fusion: [I, N, D_source]} for the encoder's {source: [I, N_source, D_source]}, or for
        sources that are aligned."""
        aligned = sources
        if not isinstance(sources, AlignedSources):
            aligned = {name: sources[origin] for name, origin in self.origins.items() if origin in sources}
            if self.blank:
                aligned = {name: torch.zeros_like(x) for name, x in aligned.items()}
            aligned = {name: self._resample(x, self.sources[name]) for name, x in aligned.items()}
            aligned = {name: self.norms[name](x) if name in self.norms else x for name, x in aligned.items()}
        return AlignedSources({name: torch.zeros_like(x) if name in self._zeroed else x for name, x in aligned.items()})

    def _resample(self, features: Tensor, spec: FeatureSpec) -> Tensor:
        if spec.grid == self.grid or spec.grid is None or self.grid is None:
            return features
        prefix, tokens = features[:, : self.prefix], features[:, self.prefix :]
        image = resize_map(tokens.transpose(1, 2).unflatten(2, spec.grid), self.grid)
        return torch.cat([prefix, image.flatten(2).transpose(1, 2)], dim=1)


def _origins(sources: dict[str, FeatureSpec], fused: Sequence[str] | None) -> dict[str, str]:
    """Returns {name in the fusion: source of the encoder}; ConfigError for an unknown source."""
    origins: dict[str, str] = {}
    for place, source in enumerate(sources if fused is None else fused or [next(iter(sources))]):
        if source not in sources:
            raise unknown_name("source", source, sources, "fused_sources")
        copies = 0 if fused is None else list(fused[:place]).count(source)
        origins[f"{source}_copy_{copies + 1}" if copies else source] = source
    return origins


def drop_sources(sources: dict[str, Tensor], probability: float, routes: Tensor | None = None) -> dict[str, Tensor]:
    """Returns sources [I, N, D], each set to zero for an image with `probability`, but never all sources of an image.

    The values that remain are not scaled. If all would be zero, the one with the largest draw remains.

    Args:
        routes: the weights [I, K] of a routed fusion; of the sources with a weight, one at least remains.
    """
    first = next(iter(sources.values()))
    draws = torch.rand(len(first), len(sources), device=first.device)
    if routes is not None:
        draws = draws.masked_fill(routes == 0, -1.0)
    kept = (draws >= probability) | (draws == draws.amax(1, keepdim=True))
    columns = zip(sources.items(), kept.unbind(1), strict=True)
    return {name: x * keep.to(x.dtype).view(-1, 1, 1) for (name, x), keep in columns}
