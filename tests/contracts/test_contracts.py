"""Every registered component keeps the contracts of its slot; one of yours does so without a test of its own."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fvl_lightning.core import registry
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import COMPONENTS
from fvl_lightning.core.types import FeatureSpec, FusionOutput
from fvl_lightning.fusions.base import Fusion
from tests.contracts import building, checks
from tests.contracts.writing import check_documented, check_naming


def _cases() -> list[Any]:
    cases = []
    for slot in COMPONENTS:
        for name in registry.names(slot):
            for number, fields in enumerate(building.tiny_configs(slot, name)):
                for check in checks.SLOT_CHECKS[slot]:
                    title = check.func.__name__ if isinstance(check, partial) else check.__name__
                    cases.append(pytest.param(slot, name, fields, check, id=f"{slot}-{name}-{number}-{title}"))
    return cases


@pytest.mark.parametrize(("slot", "name", "fields", "check"), _cases())
def test_contract(slot: str, name: str, fields: dict[str, Any], check: Any) -> None:
    component = registry.component(slot, name)
    check(building.factory(slot, component, component.Config(**fields)))


@pytest.mark.parametrize(
    ("slot", "name"), [(slot, name) for slot in registry.SLOT_PACKAGES for name in registry.names(slot)]
)
def test_written_down(slot: str, name: str) -> None:
    check_documented(registry.component(slot, name))
    check_naming(slot, name)


def test_every_slot_of_the_model_has_components() -> None:
    assert {slot: bool(registry.names(slot)) for slot in COMPONENTS} == dict.fromkeys(COMPONENTS, True)


def test_fusion_names_differ_in_their_first_ten_characters() -> None:
    """MLflow's parallel coordinates cut there."""
    names = registry.names("fusion")
    assert len({name[:10] for name in names}) == len(names)


@pytest.mark.parametrize(
    ("slot", "name", "check"),
    [("fusion", "attention", checks.check_fusion), ("projector", "pool", checks.check_projector)],
)
def test_a_class_is_checked_in_one_call(slot: str, name: str, check: Any) -> None:
    check(registry.component(slot, name))


class SumFusion(Fusion):
    """Adds the sources' projections; what the broken ones below are made of."""

    @dataclass
    class Config:
        """Nothing to set."""

    def __init__(self, config: Config, sources: dict[str, FeatureSpec]) -> None:
        super().__init__(config, sources)
        first = next(iter(sources.values()))
        self.layers = nn.ModuleDict({name: nn.Linear(spec.dim, 6) for name, spec in sources.items()})
        self.output = FeatureSpec(first.tokens, 6, first.grid)

    def forward(self, sources: dict[str, Tensor]) -> FusionOutput:
        return FusionOutput(sum(layer(sources[name]) for name, layer in self.layers.items()))


class WrongShape(SumFusion):
    """Declares a width that it does not return."""

    def __init__(self, config: Any, sources: dict[str, FeatureSpec]) -> None:
        super().__init__(config, sources)
        self.output = FeatureSpec(self.output.tokens, 7, self.output.grid)


class UnusedParameter(SumFusion):
    """Has a layer that nothing asks."""

    def __init__(self, config: Any, sources: dict[str, FeatureSpec]) -> None:
        super().__init__(config, sources)
        self.idle = nn.Linear(2, 2)


class RawParameter(SumFusion):
    """Keeps randomness outside of modules with reset_parameters()."""

    def __init__(self, config: Any, sources: dict[str, FeatureSpec]) -> None:
        super().__init__(config, sources)
        self.raw = nn.Parameter(torch.randn(6))

    def forward(self, sources: dict[str, Tensor]) -> FusionOutput:
        return FusionOutput(super().forward(sources).features + self.raw)


class LastSourceDropped(SumFusion):
    """Reads all sources but the last."""

    def __init__(self, config: Any, sources: dict[str, FeatureSpec]) -> None:
        super().__init__(config, sources)
        for name in list(sources)[1:][-1:]:
            del self.layers[name]


class InFloat32(SumFusion):
    """Returns float32 whatever comes in."""

    def forward(self, sources: dict[str, Tensor]) -> FusionOutput:
        return FusionOutput(super().forward(sources).features.float())


class FourSourcesOnly(SumFusion):
    """Cannot be built from one source."""

    def __init__(self, config: Any, sources: dict[str, FeatureSpec]) -> None:
        super().__init__(config, sources)
        assert len(sources) == 4, "four sources"


class RandomInEval(SumFusion):
    """Drops features in eval mode too."""

    def forward(self, sources: dict[str, Tensor]) -> FusionOutput:
        return FusionOutput(nn.functional.dropout(super().forward(sources).features, 0.5))


class ForgottenBuffer(SumFusion):
    """Computes a buffer where it is built and nowhere else, so a meta build never gets it."""

    def __init__(self, config: Any, sources: dict[str, FeatureSpec]) -> None:
        super().__init__(config, sources)
        self.register_buffer("scale", torch.full((6,), 2.0), persistent=False)

    def forward(self, sources: dict[str, Tensor]) -> FusionOutput:
        return FusionOutput(super().forward(sources).features * self.scale)


class HeavyMass(SumFusion):
    """Reports masses that are no shares."""

    def forward(self, sources: dict[str, Tensor]) -> FusionOutput:
        masses = {f"mass/{name}": torch.tensor(0.7) for name in sources}
        return FusionOutput(super().forward(sources).features, masses)


def test_a_fusion_from_outside_passes() -> None:
    checks.check_fusion(SumFusion)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (WrongShape, None),
        (UnusedParameter, "no gradient reaches idle.weight"),
        (RawParameter, "RawParameter has parameters"),
        (LastSourceDropped, "source_3 has no part"),
        (InFloat32, "returns torch.float32"),
        (FourSourcesOnly, "four sources"),
        (RandomInEval, None),
        (ForgottenBuffer, "scale differs from the CPU build"),
        (HeavyMass, "mass|source_0"),
    ],
)
def test_contracts_can_fail(broken: type[Any], says: str | None) -> None:
    with pytest.raises((AssertionError, ConfigError), match=says):
        checks.check_fusion(broken)
