"""A projector of its own for each source (MouSi, arXiv 2401.17221; LEO, arXiv 2501.06986)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fvl_lightning.core.config.loading import Choice, choose
from fvl_lightning.core.errors import ConfigError, unknown_name
from fvl_lightning.core.registry import register
from fvl_lightning.core.types import FeatureSpec
from fvl_lightning.projectors.base import Projector

DEFAULT = "default"
"""The key of the projector for all sources that are not named."""


@register("projector", "per_source")
class PerSourceProjector(Projector):
    """y = sum_k P_k(x_k) where the sources lie side by side on channels, [P_1(x_1); ...; P_K(x_K)] on tokens.

    The first are those of the fusion `concat`, the second those of `token_concat`. On channels all P_k must make the
    same number of tokens.
    """

    @dataclass
    class Config:
        """Fields of the projector."""

        projectors: dict[str, Any] = field(default_factory=dict, metadata={"slots": "projector"})
        """{source: projector}. A projector is written as in the slot `projector`: {name: <registered>, <fields>}. The
        one named `default` is for all other sources, each with weights of its own; without it they have an mlp."""

    def __init__(self, config: Config, features: FeatureSpec, dim: int) -> None:
        super().__init__(config, features, dim)
        choices = _choices(config, features)
        self.axis = 1 if features.parts_on_tokens else 2
        self.sizes = [part.dim if self.axis == 2 else part.tokens for part in features.parts.values()]
        self.projectors = nn.ModuleDict()
        for name, part in features.parts.items():
            with _source_in_errors(name):
                self.projectors[name] = choices[name].component(choices[name].config, part, dim)
        made: list[int] = [projector.tokens for projector in self.projectors.values()]  # type: ignore[misc]
        if self.axis == 2 and len(set(made)) > 1:
            counts = ", ".join(f"{name} {count}" for name, count in zip(features.parts, made, strict=True))
            raise ConfigError(
                "projector.projectors: sources on channels are added up, so that all must make the same number of "
                f"tokens, and not {counts}; take projectors of one number, or fusion token_concat"
            )
        self.tokens = made[0] if self.axis == 2 else sum(made)

    @classmethod
    def token_options(cls, config: Any, features: FeatureSpec) -> dict[int, Any]:
        """See Projector: every source gives as many tokens as any other one."""
        options = {}
        for name, choice in _choices(config, features).items():
            made = choice.component.token_options(choice.config, features.parts[name])
            options[name] = {count: replace(choice, config=one) for count, one in made.items()}
        common = set.intersection(*map(set, options.values()))
        times = len(options) if features.parts_on_tokens else 1
        return {
            times * count: replace(config, projectors={name: made[count] for name, made in options.items()})
            for count in sorted(common)
        }

    def image_tokens(self) -> FeatureSpec:
        """See Projector: those of the sources' projectors, on channels of the first one."""
        made = {name: projector.image_tokens() for name, projector in self.projectors.items()}  # type: ignore[operator]
        if self.axis == 1:
            return FeatureSpec(self.tokens, self._dim, None, made)
        return next(iter(made.values()))

    def forward(self, features: Tensor) -> Tensor:
        """Returns [I, N, D] for [I, N_in, D_in]."""
        parts = features.split(self.sizes, dim=self.axis)
        projected = [project(part) for project, part in zip(self.projectors.values(), parts, strict=True)]
        return torch.cat(projected, dim=1) if self.axis == 1 else torch.stack(projected).sum(0)


def _choices(config: Any, features: FeatureSpec) -> dict[str, Choice]:
    """Returns {source: its projector}.

    Raises:
        ConfigError: the features do not have the sources side by side, or a source is named that is not among them.
    """
    if not features.parts:
        raise ConfigError(
            "projector per_source: the fusion mixes its sources, and this projector needs them side by side; take "
            "fusion concat or token_concat, or another projector"
        )
    for name in config.projectors:
        if name not in features.parts and name != DEFAULT:
            raise unknown_name("source", name, [*features.parts, DEFAULT], "projector.projectors")
    choices = {}
    for name in features.parts:
        key = name if name in config.projectors else DEFAULT
        entry = config.projectors.get(key, "mlp")
        where = f"projector.projectors.{key}"
        choices[name] = entry if isinstance(entry, Choice) else choose("projector", entry, where)
    return choices


@contextmanager
def _source_in_errors(source: str) -> Iterator[None]:
    """Names the source in errors of its projector."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"source {source}: {error}") from None
