"""Sources on different grids are resampled to the grid of the first."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.types import FeatureSpec
from fvl_lightning.modeling.build import build_model, model_config
from fvl_lightning.modeling.connector.alignment import SourceAlignment, drop_sources
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration
from tests.tiny_models import experiment, pixels, tiny_model, tiny_tokenizer

IMAGES = 2
EXACT = 1e-6


def sources(specs: dict[str, FeatureSpec]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(IMAGES, spec.tokens, spec.dim, generator=generator) for name, spec in specs.items()}


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=EXACT, rtol=0)


def test_a_larger_grid_is_averaged_down() -> None:
    """4 x 4 on 2 x 2: each place the mean of its four; the pooled token passes unchanged."""
    specs = {"davit": FeatureSpec(5, 3, (2, 2)), "davit_stage_1": FeatureSpec(17, 2, (4, 4))}
    alignment, x = SourceAlignment(specs, normalize=False), sources(specs)
    aligned = alignment(x)
    assert list(aligned) == list(specs)
    assert alignment.specs == {"davit": FeatureSpec(5, 3, (2, 2)), "davit_stage_1": FeatureSpec(5, 2, (2, 2))}
    assert aligned["davit"] is x["davit"]
    stage, image = aligned["davit_stage_1"], x["davit_stage_1"][:, 1:].reshape(IMAGES, 4, 4, 2)
    close(stage[:, 0], x["davit_stage_1"][:, 0])
    for row in range(2):
        for column in range(2):
            place = image[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean((1, 2))
            close(stage[:, 1 + 2 * row + column], place)


def test_a_smaller_grid_is_interpolated_up() -> None:
    """2 x 2 on 4 x 4, bilinear: corners stay, and a map that is linear stays linear between the old centres."""
    specs = {"davit_stage_1": FeatureSpec(16, 2, (4, 4)), "davit": FeatureSpec(4, 2, (2, 2))}
    alignment = SourceAlignment(specs, normalize=False)
    x = sources(specs) | {"davit": torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [1.0, 2.0]]] * IMAGES)}
    aligned = alignment(x)["davit"].reshape(IMAGES, 4, 4, 2)
    steps = torch.tensor([0.0, 0.25, 0.75, 1.0])
    close(aligned[..., 0], steps.expand(IMAGES, 4, 4))
    close(aligned[..., 1], 2 * steps.view(4, 1).expand(IMAGES, 4, 4))


def test_grids_that_are_no_square_keep_rows_and_columns_apart() -> None:
    specs = {"a": FeatureSpec(2, 1, (1, 2)), "b": FeatureSpec(8, 1, (2, 4))}
    x = sources(specs) | {"b": torch.arange(8.0).reshape(1, 8, 1)}
    close(SourceAlignment(specs, normalize=False)(x)["b"], torch.tensor([[[2.5], [4.5]]]))


def test_one_grid_is_left_alone() -> None:
    specs = {"davit": FeatureSpec(5, 3, (2, 2)), "ocr": FeatureSpec(5, 4, (2, 2))}
    alignment, x = SourceAlignment(specs, normalize=False), sources(specs)
    assert not list(alignment.parameters())
    for name, feature in alignment(x).items():
        assert feature is x[name]


def test_normalising_is_a_layer_norm_per_source_after_resampling() -> None:
    specs = {"davit": FeatureSpec(4, 3, (2, 2)), "davit_stage_1": FeatureSpec(16, 6, (4, 4))}
    plain, normal, x = SourceAlignment(specs, False), SourceAlignment(specs, True), sources(specs)
    for name, feature in normal(x).items():
        close(feature, torch.nn.functional.layer_norm(plain(x)[name], (specs[name].dim,)))
    assert {name: p.shape[0] for name, p in normal.named_parameters()} == {
        "norms.davit.weight": 3, "norms.davit.bias": 3, "norms.davit_stage_1.weight": 6, "norms.davit_stage_1.bias": 6
    }


@pytest.mark.parametrize(
    "other", [FeatureSpec(5, 3, (2, 2)), FeatureSpec(7, 3, None)], ids=["another prefix", "no grid, other tokens"]
)
def test_sources_that_cannot_be_aligned(other: FeatureSpec) -> None:
    with pytest.raises(ConfigError, match=rf"ocr has {other.tokens} tokens .* davit's 4 tokens on grid \(2, 2\)"):
        SourceAlignment({"davit": FeatureSpec(4, 3, (2, 2)), "ocr": other}, normalize=False)


def test_tokens_without_places_pass() -> None:
    specs = {"one": FeatureSpec(6, 3, None), "other": FeatureSpec(6, 2, None)}
    x = sources(specs)
    aligned = SourceAlignment(specs, normalize=False)(x)
    assert all(aligned[name] is x[name] for name in specs)


# Source dropout.


def test_whole_sources_are_dropped_with_their_probability_and_never_all() -> None:
    """Three sources at 0.6: 0.6 less the cases in which all three would go, of which one stays: 0.6 - 0.6^3 / 3."""
    x = {name: torch.ones(4000, 2, 3) for name in ("a", "b", "c")}
    torch.manual_seed(0)
    dropped = drop_sources(x, 0.6)
    there = torch.stack([source.flatten(1).mean(1) for source in dropped.values()])
    assert set(there.unique().tolist()) == {0.0, 1.0}, "a source is there or not, and nothing is scaled"
    assert float(there.sum(0).min()) == 1
    for share in (1 - there).mean(1).tolist():
        assert share == pytest.approx(0.6 - 0.6**3 / 3, abs=0.03)


def test_of_routed_sources_one_that_is_computed_remains() -> None:
    routes = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]).repeat(200, 1)
    x = {name: torch.ones(400, 1, 1) * (routes[:, k, None, None] > 0) for k, name in enumerate("abc")}
    torch.manual_seed(0)
    there = torch.cat([source.flatten(1) for source in drop_sources(x, 0.9, routes).values()], dim=1)
    assert float(there.sum(1).min()) == 1
    assert float(there[1::2, 1].min()) == 1


def test_a_model_drops_sources_in_training_only() -> None:
    model, images = tiny_model(fusion="mean"), pixels(8)
    with torch.no_grad():
        whole = model.embed_images(images).features
        model.config.source_dropout = 0.5
        assert torch.equal(model.embed_images(images).features, whole)
        state = torch.get_rng_state()
        model.train()
        changed = (model.embed_images(images).features != whole).flatten(1).any(1)
        assert changed.any()
        torch.set_rng_state(state)
        model.config.source_dropout = 0.0
        assert torch.equal(model.embed_images(images).features, whole)
        assert torch.equal(torch.get_rng_state(), state), "without dropout nothing is drawn"


def test_the_experiments_dropout_is_saved_with_the_model(tmp_path: Path) -> None:
    asked = dataclasses.replace(experiment(tmp_path, "finetune", "conversation"), source_dropout=0.25)
    config = model_config(asked, tiny_tokenizer())
    assert config.source_dropout == config.to_diff_dict()["source_dropout"] == 0.25


def test_sources_that_are_not_kept_are_zero_behind_their_norm() -> None:
    specs = {"davit": FeatureSpec(5, 3, (2, 2)), "ocr": FeatureSpec(5, 2, (2, 2))}
    alignment, x = SourceAlignment(specs, normalize=True), sources(specs)
    whole = alignment(x)
    alignment.keep(["ocr"])
    found = alignment(x)
    assert torch.equal(found["ocr"], whole["ocr"])
    assert torch.equal(found["davit"], torch.zeros_like(whole["davit"]))
    with pytest.raises(ConfigError, match=r"--sources: unknown source 'dvit', allowed: davit, ocr; did you"):
        alignment.keep(["dvit"])


def test_a_fusion_gets_the_sources_that_are_named_and_copies() -> None:
    specs = {"davit": FeatureSpec(5, 3, (2, 2)), "ocr": FeatureSpec(5, 2, (2, 2)), "caption": FeatureSpec(5, 4, (2, 2))}
    alignment = SourceAlignment(specs, normalize=True, fused=["ocr", "davit", "ocr"])
    assert list(alignment.specs) == list(alignment.norms) == ["ocr", "davit", "ocr_copy_2"]
    found, whole = alignment(sources(specs)), SourceAlignment(specs, normalize=True)(sources(specs))
    assert list(found) == ["ocr", "davit", "ocr_copy_2"], "in the order of the fusion"
    for name, origin in alignment.origins.items():
        close(found[name], whole[origin])
    alignment.keep(["ocr"])
    assert [bool(x.any()) for x in alignment(sources(specs)).values()] == [True, False, True], "a copy goes with it"
    with pytest.raises(ConfigError, match=r"fused_sources: unknown source 'dvit', allowed: caption, davit, ocr"):
        SourceAlignment(specs, normalize=True, fused=["dvit"])


@pytest.mark.parametrize("fusion", ["concat", "gated", {"name": "moe", "top": 1}])
def test_without_any_source_all_images_have_the_same_features(tmp_path: Path, fusion: Any) -> None:
    asked = dataclasses.replace(experiment(tmp_path, "finetune", "conversation", fusion=fusion), fused_sources=[])
    config = model_config(asked, tiny_tokenizer())
    assert config.to_diff_dict()["fused_sources"] == [], "it is saved with the model"
    model, full = FlorenceVLForConditionalGeneration(config), tiny_model(fusion=fusion)
    assert model.image_spec == full.image_spec
    features = model.embed_images(pixels(3)).features
    assert torch.equal(features, features[:1].expand_as(features))
    features.sum().backward()
    assert all(p.grad is not None for p in (*model.fusion.parameters(), *model.alignment.parameters()))


def test_copies_make_a_subset_as_large_as_all_sources(tmp_path: Path) -> None:
    def parameters(**given: Any) -> int:
        asked = experiment(tmp_path, "finetune", "conversation", fusion="concat")
        return build_model(dataclasses.replace(asked, **given), "meta").model.num_parameters()

    all_sources, few = parameters(), ["davit", "ocr"]
    assert parameters(fused_sources=few) < all_sources == parameters(fused_sources=few * 2)
