"""The fusions of the literature against direct formulas, written as loops over positions; float64, 1e-10."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.types import FeatureSpec
from fvl_lightning.fusions.attention import AttentionFusion
from fvl_lightning.fusions.base import build_fusion
from fvl_lightning.fusions.bilinear import BilinearFusion
from fvl_lightning.fusions.dense import DenseFusion
from fvl_lightning.fusions.film import FilmFusion
from fvl_lightning.fusions.gated import GatedFusion
from fvl_lightning.fusions.interleave import InterleaveFusion
from fvl_lightning.fusions.moe import MoeFusion
from fvl_lightning.fusions.mousi import MousiFusion
from fvl_lightning.fusions.native_grids.mmfuser import MmfuserFusion
from fvl_lightning.fusions.native_grids.sva import SvaFusion
from tests.tiny_models import initialized, pixels, tiny_model

IMAGES, QUESTION = 2, 3
SHARED = {"a": FeatureSpec(7, 8, (2, 3)), "b": FeatureSpec(7, 4, (2, 3)), "c": FeatureSpec(7, 8, (2, 3))}
"""A pooled token and a map of 2 x 3, of two widths."""
NATIVE = {
    "a": FeatureSpec(6, 8, (2, 3)), "wide": FeatureSpec(25, 4, (4, 6)), "odd": FeatureSpec(5, 8, (5, 1)),
    "bag": FeatureSpec(2, 4, None),
}  # fmt: skip
"""Grids that the first one divides, a pooled token before one of them; one that it does not; and tokens without one."""


def features(specs: dict[str, FeatureSpec]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(IMAGES, spec.tokens, spec.dim, generator=generator, dtype=torch.float64)
        for name, spec in specs.items()
    }


QUESTIONS = torch.randn(IMAGES, QUESTION, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def build(component: type[Any], specs: dict[str, FeatureSpec] = SHARED, **config: Any) -> Any:
    fusion = build_fusion(component, component.Config(**config), specs, QUESTION)
    return initialized("fusion", fusion, seed=2).double().eval().requires_grad_(False)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=0)


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return x @ layer.weight.T + (0 if layer.bias is None else layer.bias)


def normed(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def attend(query: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """One query [D] over keys and values [M, D], head by head."""
    joined = []
    for q, k, v in zip(query.chunk(heads), keys.chunk(heads, -1), values.chunk(heads, -1), strict=True):
        weights = (k @ q / len(q) ** 0.5).exp()
        joined.append((weights / weights.sum()) @ v)
    return torch.cat(joined)


def test_dense_sparse_channel_is_a_concatenation_of_channels() -> None:
    x, fusion = features(SHARED), build(DenseFusion, by="sparse_channel")
    assert torch.equal(fusion(x).features, torch.cat([x["a"], x["b"], x["c"]], dim=-1))
    assert not list(fusion.parameters())


def test_dense_channel_means_over_groups() -> None:
    """Five sources of one width in two groups: 2 and 3 of them."""
    specs = {f"layer_{k}": FeatureSpec(4, 6, (2, 2)) for k in range(5)}
    x, fusion = features(specs), build(DenseFusion, specs)
    v = list(x.values())
    close(fusion(x).features, torch.cat([v[0], (v[0] + v[1]) / 2, (v[2] + v[3] + v[4]) / 3], dim=-1))
    assert fusion.output == FeatureSpec(4, 18, (2, 2))
    assert list(fusion.output.parts) == ["layer_0", "group_1", "group_2"]
    assert build(DenseFusion, specs, groups=9).groups == 5


def test_dense_channel_projects_another_width() -> None:
    x, fusion = features(SHARED), build(DenseFusion, groups=1)
    b = linear(fusion.common_width.projections["b"], x["b"])
    close(fusion(x).features, torch.cat([x["a"], (x["a"] + b + x["c"]) / 3], dim=-1))


def test_dense_sparse_token_averages_blocks() -> None:
    """Blocks of 2 x 2 on a map of 2 x 3: one of four tokens, and one of the two that are left."""
    x, fusion = features(SHARED), build(DenseFusion, by="sparse_token", pool=2)
    pooled = []
    for source in (linear(fusion.common_width.projections["b"], x["b"]), x["c"]):
        t = source.unbind(1)  # the pooled token, then rows of three
        pooled += [torch.stack([t[0], (t[1] + t[2] + t[4] + t[5]) / 4, (t[3] + t[6]) / 2], dim=1)]
    close(fusion(x).features, torch.cat([x["a"], *pooled], dim=1))
    assert fusion.output == FeatureSpec(7 + 3 + 3, 8, None)
    assert [part.grid for part in fusion.output.parts_on_tokens] == [(2, 3), (1, 2), (1, 2)]


def test_dense_sparse_token_without_a_map_averages_in_reading_order() -> None:
    specs = {name: FeatureSpec(6, 8, None) for name in ("a", "b")}
    x, fusion = features(specs), build(DenseFusion, specs, by="sparse_token", pool=2)
    close(fusion(x).features[:, 6:], torch.stack([x["b"][:, :4].mean(1), x["b"][:, 4:].mean(1)], dim=1))
    assert fusion.output.tokens == 8


def test_mousi_adds_mlps() -> None:
    x, fusion = features(SHARED), build(MousiFusion, hidden=5, dim=6)
    wanted = torch.zeros(IMAGES, 7, 6, dtype=torch.float64)
    for name in SHARED:
        first, _, second = fusion.mlps[name]
        wanted += linear(second, gelu(linear(first, x[name])))
    close(fusion(x).features, wanted)


def test_interleave_takes_turns() -> None:
    x, fusion = features(SHARED), build(InterleaveFusion, dim=6)
    found = fusion(x).features
    assert fusion.output == FeatureSpec(21, 6, None)
    for token in range(7):
        for k, name in enumerate(SHARED):
            close(found[:, 3 * token + k], linear(fusion.projections[name], x[name][:, token]))


def test_bilinear_multiplies_every_pair() -> None:
    x, fusion = features(SHARED), build(BilinearFusion, rank=5, dim=6)
    t = {name: torch.tanh(linear(fusion.factors[name], x[name])) for name in SHARED}
    pairs = t["a"] * t["b"] + t["a"] * t["c"] + t["b"] * t["c"]
    close(fusion(x).features, linear(fusion.out, t["a"] + t["b"] + t["c"] + pairs))


def test_film_scales_and_shifts_channels() -> None:
    x, fusion = features(SHARED), build(FilmFusion)
    scale, shift = linear(fusion.scale_and_shift, QUESTIONS).chunk(2, dim=-1)
    found = fusion(x, question=QUESTIONS).features
    for image in range(IMAGES):
        for token in range(7):
            channels = torch.cat([x[name][image, token] for name in SHARED])
            close(found[image, token], channels + scale[image] * channels + shift[image])


@pytest.mark.parametrize("component", [GatedFusion, AttentionFusion])
def test_with_a_question_map_of_zeros_the_question_changes_nothing(component: type[Any]) -> None:
    """The parameters are those of the fusion without the question and one matrix more."""
    x, plain, asked = features(SHARED), build(component), build(component, condition="question")
    assert set(asked.state_dict()) - set(plain.state_dict()) == {"question.weight"}
    asked.load_state_dict(plain.state_dict() | {"question.weight": torch.zeros_like(asked.question.weight)})
    assert torch.equal(asked(x, question=QUESTIONS).features, plain(x).features)


def test_gated_adds_the_question_to_the_logits() -> None:
    x, fusion = features(SHARED), build(GatedFusion, condition="question")
    found = fusion(x, question=QUESTIONS)
    for image in range(IMAGES):
        for token in range(7):
            place = {name: x[name][image, token] for name in SHARED}
            logits = linear(fusion.gates, torch.cat(list(place.values()))) + fusion.question.weight @ QUESTIONS[image]
            gates = logits.exp() / logits.exp().sum()
            values = [linear(fusion.values[name], one) for name, one in place.items()]
            close(found.features[image, token], sum(g * v for g, v in zip(gates, values, strict=True)))


@pytest.mark.parametrize("query", ["first", "learned"])
def test_attention_adds_the_question_to_the_query(query: str) -> None:
    x, fusion = features(SHARED), build(AttentionFusion, condition="question", query=query, heads=2)
    b = linear(fusion.common_width.projections["b"], x["b"])
    found = fusion(x, question=QUESTIONS).features
    for image in range(IMAGES):
        for token in range(7):
            place = torch.stack([source[image, token] for source in (x["a"], b, x["c"])])
            asking = fusion.query.weight[0] if query == "learned" else linear(fusion.query, place[0])
            keys, values = linear(fusion.key_value, place).chunk(2, dim=-1)
            keys = keys + fusion.source_keys.weight
            read = attend(asking + fusion.question.weight @ QUESTIONS[image], keys, values, heads=2)
            close(found[image, token], linear(fusion.out, read))


def test_moe_is_a_softmax_over_the_largest_scores() -> None:
    x, fusion = features(SHARED), build(MoeFusion)
    routes = fusion.route({"a": x["a"]}, None)
    found = fusion(x, routes=routes).features
    for image in range(IMAGES):
        scores = linear(fusion.router, x["a"][image].mean(0))
        best = sorted(range(3), key=lambda k, scores=scores: -float(scores[k]))[:2]
        total = sum(scores[k].exp() for k in best)
        names = list(SHARED)
        parts = [scores[k].exp() / total * linear(fusion.experts[names[k]], x[names[k]][image]) for k in best]
        close(found[image], sum(parts))


def test_the_router_of_one_source_learns() -> None:
    """The weight of the only source is exactly 1, and its gradient that of its probability."""
    fusion = build(MoeFusion, top=1)
    fusion.router.weight.requires_grad_()
    x = features(SHARED)
    routes = fusion.route({"a": x["a"]}, None)
    assert sorted(routes.flatten().tolist()) == [0, 0, 0, 0, 1, 1]
    (found,) = torch.autograd.grad((routes * 3).sum(), fusion.router.weight)
    probabilities = linear(fusion.router, x["a"].mean(1)).softmax(-1)
    (wanted,) = torch.autograd.grad(3 * probabilities.amax(1).sum(), fusion.router.weight)
    close(found, wanted)


def test_mmfuser_lets_the_first_source_ask_all_tokens() -> None:
    specs = {name: NATIVE[name] for name in ("a", "wide", "odd")}
    x, fusion = features(specs), build(MmfuserFusion, specs, heads=2, scale=0.5)
    wide = linear(fusion.common_width.projections["wide"], x["wide"])
    tokens = normed(fusion.key_norm, torch.cat([x["a"], wide, x["odd"]], dim=1))

    def attention(module: Any, queries: Tensor, read: Tensor) -> Tensor:
        keys, values = linear(module.key_value, read).chunk(2, dim=-1)
        return torch.stack([linear(module.out, attend(q, keys, values, 2)) for q in linear(module.query, queries)])

    found = fusion(x).features
    assert fusion.output == NATIVE["a"]
    for image in range(IMAGES):
        read = attention(fusion.cross_attention, normed(fusion.query_norm, x["a"][image]), tokens[image])
        again = normed(fusion.self_norm, read)
        read = read + 0.5 * attention(fusion.self_attention, again, again)
        close(found[image], x["a"][image] + 0.5 * read)


def sva_windows(x: dict[str, Tensor], image: int, row: int, column: int) -> dict[str, list[Tensor]]:
    """What a query of the map of 2 x 3 reads of each source of NATIVE, by hand: loose tokens, then the window."""
    wide = x["wide"][image, 1:].unflatten(0, (4, 6))
    odd = x["odd"][image]  # 5 x 1 on 4 x 3: rows 0-1, 1-2, 2-3 and 3-4 are averaged, the column is repeated
    rows = [(odd[k] + odd[k + 1]) / 2 for k in range(4)]
    return {
        "a": [x["a"][image, 3 * row + column]],
        "wide": [x["wide"][image, 0]]
        + [wide[2 * row + down, 2 * column + right] for down in (0, 1) for right in (0, 1)],
        "odd": [rows[2 * row], rows[2 * row + 1]],
        "bag": list(x["bag"][image]),
    }


def test_sva_reads_the_windows_at_the_place_of_the_query() -> None:
    x, fusion = features(NATIVE), build(SvaFusion, NATIVE, heads=2, depth=2, dim=6)
    assert fusion.output == FeatureSpec(6, 6, (2, 3))
    assert fusion.sizes == {"a": (1, 1), "wide": (2, 2), "odd": (2, 1), "bag": (0, 0)}
    output, masses = fusion(x), torch.zeros(4, dtype=torch.float64)
    for image in range(IMAGES):
        for place in range(6):
            read = sva_windows(x, image, *divmod(place, 3))
            for name in ("wide", "odd"):  # the learned places stand at the end, behind a pooled token
                places = fusion.places[name].weight
                read[name][-len(places) :] = [t + p for t, p in zip(read[name][-len(places) :], places, strict=True)]
            z = fusion.queries.weight[place]
            for layer in fusion.layers:
                tokens = []
                for name in NATIVE:
                    norm, project = layer.key_values[name]
                    tokens += [linear(project, normed(norm, token)) for token in read[name]]
                keys, values = torch.stack(tokens).chunk(2, dim=-1)
                query = linear(layer.query[1], normed(layer.query[0], z))
                z = z + linear(layer.out, attend(query, keys, values, 2))
                norm, first, _, second = layer.mlp
                z = z + linear(second, gelu(linear(first, normed(norm, z))))
                weights = torch.stack([(k @ q / 3**0.5).softmax(0) for k, q in
                                       zip(keys.chunk(2, -1), query.chunk(2), strict=True)]).mean(0)  # fmt: skip
                masses += torch.stack([one.sum() for one in weights.split([1, 5, 2, 2])]) / (2 * 6 * IMAGES)
            close(output.features[image, place], z)
    for name, mass in zip(NATIVE, masses, strict=True):
        assert float(output.diagnostics[f"mass/{name}"]) == pytest.approx(float(mass), abs=1e-6)
        assert output.diagnostics[f"map/{name}"].shape == (IMAGES, 6)


def test_sva_has_as_many_tokens_as_queries() -> None:
    fusion = build(SvaFusion, NATIVE, side=4)
    assert fusion.output == FeatureSpec(16, 8, (4, 4))
    assert tuple(fusion(features(NATIVE)).features.shape) == (IMAGES, 16, 8)


@pytest.mark.parametrize("name", ["sva", "mmfuser"])
def test_a_whole_model_gives_each_source_as_its_encoder_does(name: str) -> None:
    """A finer map keeps its tokens: two that lie in one place of the first source's grid are told apart."""
    model = tiny_model(fusion=name, sources=["davit", "davit_stage_1", "caption"], normalize=True)
    specs = model.fusion.sources
    assert specs == model.encoder.specs
    assert specs["davit_stage_1"].grid[0] > specs["davit"].grid[0]
    with torch.no_grad():
        found = model.encoder(pixels(1))
        one = model.embed_images(sources=found).features
        swapped = found["davit_stage_1"].clone()
        begin = specs["davit_stage_1"].prefix
        swapped[:, [begin, begin + 1]] = swapped[:, [begin + 1, begin]]
        other = model.embed_images(sources=found | {"davit_stage_1": swapped}).features
    moved = float((one - other).abs().max())
    assert (moved < 1e-6) == (name == "mmfuser"), "attention over all tokens does not see their order"


@pytest.mark.parametrize("component", [SvaFusion, MmfuserFusion])
def test_heads_must_divide_the_width(component: type[Any]) -> None:
    with pytest.raises(ConfigError, match=r"fusion\.heads: 3 heads do not divide the width 8"):
        build(component, NATIVE, heads=3)
