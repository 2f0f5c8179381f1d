"""Each fusion compared with an independent computation; float64, largest difference 1e-12."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fvl_lightning.core import registry
from fvl_lightning.core.config.loading import choose
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.types import FeatureSpec, FusionOutput
from fvl_lightning.fusions import base
from fvl_lightning.fusions.attention import AttentionFusion
from fvl_lightning.fusions.concat import ConcatFusion
from fvl_lightning.fusions.gated import GatedFusion
from fvl_lightning.fusions.mean import MeanFusion
from fvl_lightning.fusions.token_concat import TokenConcatFusion
from tests.contracts.building import QUESTION, fusion_inputs
from tests.tiny_models import initialized

IMAGES, TOKENS = 2, 5
NAMES = ("davit", "caption", "ocr")


def specs(*dims: int) -> dict[str, FeatureSpec]:
    return {name: FeatureSpec(TOKENS, dim, (2, 2)) for name, dim in zip(NAMES, dims, strict=False)}


def features(sources: dict[str, FeatureSpec], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(IMAGES, spec.tokens, spec.dim, generator=generator, dtype=torch.float64)
        for name, spec in sources.items()
    }


def build(component: type[Any], *dims: int, **config: Any) -> Any:
    fusion = base.build_fusion(component, component.Config(**config), specs(*dims), QUESTION)
    return initialized("fusion", fusion, seed=2).double().eval().requires_grad_(False)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)


def projected(layer: nn.Linear, x: Tensor) -> Tensor:
    return x @ layer.weight.T + layer.bias


# mean, concat, token_concat


def test_mean_is_the_mean() -> None:
    x = features(specs(6, 6, 6))
    close(build(MeanFusion, 6, 6, 6)(x).features, (x["davit"] + x["caption"] + x["ocr"]) / 3)


def test_mean_projects_what_has_another_width() -> None:
    fusion, x = build(MeanFusion, 6, 4, 6), features(specs(6, 4, 6))
    assert list(fusion.common_width.projections) == ["caption"]
    caption = projected(fusion.common_width.projections["caption"], x["caption"])
    close(fusion(x).features, (x["davit"] + caption + x["ocr"]) / 3)


def test_mean_of_a_width_of_its_own() -> None:
    fusion, x = build(MeanFusion, 6, 4, dim=3), features(specs(6, 4))
    layers = fusion.common_width.projections
    wanted = (projected(layers["davit"], x["davit"]) + projected(layers["caption"], x["caption"])) / 2
    close(fusion(x).features, wanted)


def test_concat_keeps_the_order_of_the_sources() -> None:
    fusion, x = build(ConcatFusion, 6, 4, 2), features(specs(6, 4, 2))
    fused = fusion(x).features
    assert fusion.output == FeatureSpec(TOKENS, 12, (2, 2))
    assert not list(fusion.parameters())
    assert torch.equal(fused[..., :6], x["davit"])
    assert torch.equal(fused[..., 6:10], x["caption"])
    assert torch.equal(fused[..., 10:], x["ocr"])


def test_concat_has_the_width_of_more_sources_than_there_are() -> None:
    fusion, x = build(ConcatFusion, 6, 4, repeat=3), features(specs(6, 4))
    assert fusion.output == FeatureSpec(TOKENS, 30, (2, 2))
    close(fusion(x).features, torch.cat([x["davit"], x["caption"]] * 3, dim=-1))
    with pytest.raises(ConfigError, match="repeat must be at least 1, not 0"):
        choose("fusion", {"name": "concat", "repeat": 0})


def test_token_concat_keeps_the_order_of_the_sources() -> None:
    fusion, x = build(TokenConcatFusion, 6, 4, 6), features(specs(6, 4, 6))
    fused = fusion(x).features
    assert fusion.output == FeatureSpec(3 * TOKENS, 6, None)
    assert torch.equal(fused[:, :TOKENS], x["davit"])
    close(fused[:, TOKENS : 2 * TOKENS], projected(fusion.common_width.projections["caption"], x["caption"]))
    assert torch.equal(fused[:, 2 * TOKENS :], x["ocr"])


@pytest.mark.parametrize("component", [MeanFusion, ConcatFusion, TokenConcatFusion])
def test_no_diagnostics_where_nothing_is_weighed(component: type[Any]) -> None:
    assert build(component, 6, 6)(features(specs(6, 6))).diagnostics == {}


# gated


def gates_by_hand(fusion: Any, x: dict[str, Tensor]) -> Tensor:
    return projected(fusion.gates, torch.cat([x[name] for name in fusion.sources], dim=-1))


@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
def test_gated_weighs_projected_sources(gate: str) -> None:
    fusion, x = build(GatedFusion, 6, 4, 6, gate=gate), features(specs(6, 4, 6))
    logits = gates_by_hand(fusion, x)
    weights = logits.exp() / logits.exp().sum(-1, keepdim=True) if gate == "softmax" else 1 / (1 + (-logits).exp())
    wanted = torch.zeros(IMAGES, TOKENS, 6, dtype=torch.float64)
    for index, name in enumerate(NAMES):
        wanted += weights[..., index : index + 1] * projected(fusion.values[name], x[name])
    output = fusion(x)
    close(output.features, wanted)
    shares = (weights / weights.sum(-1, keepdim=True)).flatten(0, 1).mean(0)
    for index, name in enumerate(NAMES):
        assert float(output.diagnostics[f"mass/{name}"]) == pytest.approx(float(shares[index]), abs=1e-6)


def test_equal_gates_give_the_mean_of_projected_values() -> None:
    fusion, x = build(GatedFusion, 6, 4, 6), features(specs(6, 4, 6))
    nn.init.zeros_(fusion.gates.weight)
    nn.init.constant_(fusion.gates.bias, 0.7)
    output = fusion(x)
    close(output.features, torch.stack([projected(fusion.values[name], x[name]) for name in NAMES]).mean(0))
    for name in NAMES:
        assert float(output.diagnostics[f"mass/{name}"]) == pytest.approx(1 / 3, abs=1e-6)
        torch.testing.assert_close(output.diagnostics[f"map/{name}"], torch.full((IMAGES, TOKENS), 1 / 3))


def test_a_gate_can_shut_all_other_sources_out() -> None:
    fusion, x = build(GatedFusion, 6, 4, 6), features(specs(6, 4, 6))
    nn.init.zeros_(fusion.gates.weight)
    with torch.no_grad():
        fusion.gates.bias.copy_(torch.tensor([-100.0, 100.0, -100.0]))
    output = fusion(x)
    close(output.features, projected(fusion.values["caption"], x["caption"]))
    assert float(output.diagnostics["mass/caption"]) == 1.0


def test_sigmoid_gates_open_on_their_own() -> None:
    fusion, x = build(GatedFusion, 6, 6, gate="sigmoid"), features(specs(6, 6))
    nn.init.zeros_(fusion.gates.weight)
    nn.init.constant_(fusion.gates.bias, 100.0)
    close(fusion(x).features, sum(projected(fusion.values[name], x[name]) for name in NAMES[:2]))


# attention


@pytest.mark.parametrize("query", ["first", "learned"])
@pytest.mark.parametrize(("dims", "dim", "heads"), [((8, 8, 8), None, 4), ((8, 6, 4), None, 2), ((6, 8, 4), 10, 1)])
def test_attention_is_attention_over_the_sources_of_a_position(
    query: str, dims: tuple[int, ...], dim: int | None, heads: int
) -> None:
    """Against torch's own attention, one position at a time."""
    fusion, x = build(AttentionFusion, *dims, query=query, heads=heads, dim=dim), features(specs(*dims))
    width = dim or dims[0]
    common = [
        projected(fusion.common_width.projections[name], x[name]) if spec.dim != width else x[name]
        for name, spec in fusion.sources.items()
    ]
    output = fusion(x)
    masses = torch.zeros(len(common), dtype=torch.float64)
    for image in range(IMAGES):
        for token in range(TOKENS):
            place = torch.stack([source[image, token] for source in common])  # [K, D]
            asking = fusion.query.weight[0] if query == "learned" else projected(fusion.query, place[0])
            keys, values = projected(fusion.key_value, place).chunk(2, dim=-1)
            keys = keys + fusion.source_keys.weight
            q, k, v = (t.reshape(-1, heads, width // heads).transpose(0, 1) for t in (asking[None], keys, values))
            joined = nn.functional.scaled_dot_product_attention(q, k, v)  # [heads, 1, D / heads]
            close(output.features[image, token], projected(fusion.out, joined.flatten()))
            masses += (q @ k.mT / (width // heads) ** 0.5).softmax(-1).mean((0, 1)) / (IMAGES * TOKENS)
    for name, mass in zip(fusion.sources, masses, strict=True):
        assert float(output.diagnostics[f"mass/{name}"]) == pytest.approx(float(mass), abs=1e-6)
        places = output.diagnostics[f"map/{name}"]
        assert places.shape == (IMAGES, TOKENS)
        assert float(places.mean()) == pytest.approx(float(mass), abs=1e-6)


def test_attention_never_looks_at_a_neighbour() -> None:
    fusion, x = build(AttentionFusion, 8, 8, 8), features(specs(8, 8, 8))
    changed = {name: source.clone() for name, source in x.items()}
    changed["ocr"][0, 3] += 1
    one, other = fusion(x).features, fusion(changed).features
    moved = (one != other).any(-1)
    assert moved.nonzero().tolist() == [[0, 3]]


def test_source_keys_tell_equal_sources_apart() -> None:
    """With all sources alike, content cannot decide; the sources' own keys still can."""
    fusion = build(AttentionFusion, 8, 8, 8)
    same = features(specs(8))["davit"]
    masses = fusion(dict.fromkeys(NAMES, same)).diagnostics
    assert len({round(float(mass), 4) for name, mass in masses.items() if name.startswith("mass/")}) == 3


@pytest.mark.parametrize(("heads", "dim"), [(3, None), (0, None), (4, 6)])
def test_heads_must_divide_the_width(heads: int, dim: int | None) -> None:
    with pytest.raises(ConfigError, match=f"fusion.heads: {heads} heads do not divide the width {dim or 8}"):
        AttentionFusion(AttentionFusion.Config(heads=heads, dim=dim), specs(8, 8))


# all of them


@pytest.mark.parametrize("name", registry.names("fusion"))
def test_images_are_fused_apart(name: str) -> None:
    fusion, x = build(registry.component("fusion", name), 8, 8, 8), features(specs(8, 8, 8))
    inputs = fusion_inputs(fusion, x)
    alone = fusion({source: feature[1:] for source, feature in x.items()}, **{key: v[1:] for key, v in inputs.items()})
    close(fusion(x, **inputs).features[1:], alone.features)


@pytest.mark.parametrize("name", registry.names("fusion"))
def test_no_source_is_an_error(name: str) -> None:
    component = registry.component("fusion", name)
    with pytest.raises(ConfigError, match=r"no source to fuse; name at least one in encoder\.sources"):
        base.build_fusion(component, component.Config(), {}, QUESTION)


def test_fusions_of_users_find_the_earlier_name_of_source_weights() -> None:
    assert base.source_masses is base.source_weights


class Asking(base.Fusion):
    """Reads the question, and declares it."""

    conditioned = True

    @dataclass
    class Config:
        """Nothing to set."""

    def __init__(self, config: Any, sources: Any, question_dim: int) -> None:
        super().__init__(config, sources, question_dim)

    def forward(self, sources: Any, question: Any) -> FusionOutput:  # type: ignore[override]
        return FusionOutput(next(iter(sources.values())))


class Silent(Asking):
    """Does not declare it."""

    conditioned = False


class Deaf(Asking):
    """Declares it, and does not take it."""

    def forward(self, sources: Any) -> FusionOutput:  # type: ignore[override]
        return FusionOutput(next(iter(sources.values())))


class Lost(Asking):
    """Declares routes, and chooses none."""

    routed = True


@pytest.mark.parametrize(
    ("fusion", "says"),
    [
        (Lost, r"^fusion Lost sets routed = True and must define route\(sources, question\)$"),
        (Silent, r"^fusion Silent \(conditioned = False, routed = False\): __init__ gets \(config, sources\), but"),
        (Deaf, r"^fusion Deaf \(conditioned = True, routed = False\): forward gets \(sources, question\), but got an"),
    ],
)
def test_a_declaration_that_the_signatures_do_not_follow_is_named(fusion: Any, says: str) -> None:
    specs = {"davit": FeatureSpec(4, 6, (2, 2))}
    base.build_fusion(Asking, Asking.Config(), specs, 5)
    with pytest.raises(ConfigError, match=says):
        base.build_fusion(fusion, fusion.Config(), specs, 5)
