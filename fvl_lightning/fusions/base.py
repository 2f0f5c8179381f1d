"""The base class of fusions, and the projection to a common width that most of them share."""

import inspect
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.types import FeatureSpec, FusionOutput


class Fusion(nn.Module, ABC):
    """Fuses feature sources; by default they come on one grid, and the fused features replace the image placeholders.

    A subclass is built from its Config and the specs of the sources, and sets `output`. All its parameters must be in
    modules with `reset_parameters()`, or it defines that method itself, since models are first built without memory.

    A subclass asks for more by a declaration (docs/fusions.md has an example of each):

    - `grids = "native"`: every source comes on its own grid, as `sources` describes it.
    - `conditioned = True`: `__init__` also gets the width of the question's embedding, and `forward` the keyword
      argument `question` [I, C], the mean embedding of the tokens of the question that is asked about each image. It
      is zero where there is no question. Answers and later turns have no part in it.
    - `inner_layers`, set in `__init__`: features for inner layers of the language model, which `forward` returns as
      `FusionOutput.inner_layers`.
    - `routed = True`: `route` decides for each image which sources are computed, and `forward` gets its result as
      the keyword argument `routes` [I, K].
    """

    grids: ClassVar[Literal["shared", "native"]] = "shared"
    """shared: all sources are resampled to the grid of the first one; native: they come as the encoder gives them."""
    conditioned: ClassVar[bool] = False
    """Whether `forward` gets the question; see `is_conditioned`."""
    routed: ClassVar[bool] = False
    """Whether `route` decides which sources are computed."""
    output: FeatureSpec
    """The shape of the output for an image."""
    inner_layers: dict[int, FeatureSpec]
    """{k: the shape of the features that enter the language model in front of its block k}, k from 1; usually none."""
    injection: Literal["add", "cross_attention"] = "add"
    """add: the projected features of inner layers are added to the hidden states at the image's places;
    cross_attention: these hidden states attend to them, behind a gate that begins at zero."""

    def __init__(self, config: Any, sources: dict[str, FeatureSpec], question_dim: int | None = None) -> None:
        super().__init__()
        if not sources:
            raise ConfigError("fusion: there is no source to fuse; name at least one in encoder.sources")
        self.config = config
        self.sources = sources
        self.question_dim = question_dim
        self.inner_layers = {}

    @classmethod
    def is_conditioned(cls, config: Any) -> bool:
        """Returns whether a fusion of this Config reads the question; overridden where a field decides."""
        return cls.conditioned

    @property
    def routing_sources(self) -> tuple[str, ...]:
        """The sources that `route` reads, which are always computed: the first one, if not overridden."""
        return (next(iter(self.sources)),)

    def route(self, sources: dict[str, Tensor], question: Tensor | None) -> Tensor:
        """Returns the weights [I, K] of the K sources for each image; where a weight is 0, the source is not computed.

        The weights of an image add up to 1.

        Args:
            sources: {source: [I, N, D_source]} of `routing_sources`.
            question: [I, C] for a conditioned fusion, otherwise None.
        """
        raise NotImplementedError(f"{type(self).__name__} is routed and must define route()")

    @abstractmethod
    def forward(self, sources: dict[str, Tensor]) -> FusionOutput:
        """Returns features [I, N_out, D_out] and diagnostics for {source: [I, N, D_source]}.

        A conditioned fusion also takes `question` [I, C], a routed one `routes` [I, K]. A source that was not computed
        for an image is zero there.
        """


def build_fusion(
    component: type[Fusion], config: Any, sources: dict[str, FeatureSpec], question_dim: int
) -> Fusion:
    """Builds a fusion; only one that reads the question gets the width of its embedding.

    Raises:
        ConfigError: `__init__` or `forward` do not take the arguments that its declarations promise, or a routed
            fusion defines no `route`.
    """
    if component.routed and component.route is Fusion.route:
        raise ConfigError(f"fusion {component.__name__} sets routed = True and must define route(sources, question)")
    conditioned = component.is_conditioned(config)
    given = {"question": conditioned, "routes": component.routed}
    arguments = (config, sources, question_dim) if conditioned else (config, sources)
    _check_call(component, "__init__", "config, sources" + ", question_dim" * conditioned, None, *arguments)
    inputs = [name for name, wanted in given.items() if wanted]
    _check_call(component, "forward", ", ".join(["sources", *inputs]), None, sources, **dict.fromkeys(inputs))
    return component(*arguments)


def _check_call(component: type[Fusion], method: str, takes: str, *arguments: Any, **named: Any) -> None:
    """Raises ConfigError where a method of a class cannot be called with these arguments, self included."""
    try:
        inspect.signature(getattr(component, method)).bind(*arguments, **named)
    except TypeError as error:
        declared = f"conditioned = {component.conditioned}, routed = {component.routed}"
        raise ConfigError(
            f"fusion {component.__name__} ({declared}): {method} gets ({takes}), but {error}; mend the declaration or "
            "the signature"
        ) from None


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


def check_heads(heads: int, dim: int) -> None:
    """Raises ConfigError where attention cannot divide its width among the heads."""
    if heads < 1 or dim % heads:
        raise ConfigError(f"fusion.heads: {heads} heads do not divide the width {dim}")


def resize_map(image: Tensor, grid: tuple[int, int]) -> Tensor:
    """Returns a map [I, D, rows, columns] on another grid: averaged (adaptive mean) where it has more rows, otherwise
    interpolated (bilinear)."""
    if tuple(image.shape[2:]) == grid:
        return image
    if image.shape[2] >= grid[0]:
        return nn.functional.adaptive_avg_pool2d(image, grid)
    return nn.functional.interpolate(image, size=grid, mode="bilinear", align_corners=False)


def source_weights(weights: Tensor, sources: dict[str, FeatureSpec]) -> dict[str, Tensor]:
    """Returns the diagnostics of weights over K sources: {"mass/<source>": scalar}, the mean weight of each, detached.

    Weights per image, [I, K], also give {"weight/<source>": [I]}, and weights per position, [I, N, K] or
    [I, N, heads, K], {"map/<source>": [I, N]}, the weight at each.
    """
    weights = weights.detach().float()
    means = weights.flatten(0, -2).mean(0)
    diagnostics = {f"mass/{name}": mean for name, mean in zip(sources, means, strict=True)}
    if weights.ndim < 3:
        return diagnostics | {f"weight/{name}": one for name, one in zip(sources, weights.unbind(-1), strict=True)}
    per_position = weights.flatten(2, -2).mean(2) if weights.ndim > 3 else weights
    return diagnostics | {f"map/{name}": values for name, values in zip(sources, per_position.unbind(-1), strict=True)}


source_masses = source_weights
"""The earlier name of `source_weights`, which fusions of users import."""
