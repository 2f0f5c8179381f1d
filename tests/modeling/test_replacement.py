"""Sources that are replaced behind the alignment, for every kind of fusion, without another call of the encoder."""

from typing import Any

import pytest
import torch

from fvl_lightning.modeling.connector.alignment import AlignedSources
from fvl_lightning.modeling.connector.replacement import NOISE_DRAWS, SourceMoments, replace_sources, zeros
from tests.tiny_models import BOS, IMAGE, LLAMA, TOKENS, pixels, tiny_model

SOURCES = ["davit", "caption", "davit_stage_1"]
FUSIONS: dict[str, dict[str, Any]] = {
    "one grid": {"name": "concat"},
    "weighted": {"name": "gated"},
    "native grids": {"name": "sva"},
    "routed": {"name": "moe", "top": 2},
    "inner layers": {"name": "deepstack", "layers": [1, 2]},
    "conditioned": {"name": "film"},
}


def features_of(model: Any, **images: Any) -> list[torch.Tensor]:
    asked = {"question_ids": torch.arange(4, 10).view(3, 2)} if model.conditioned else {}
    embedded = model.embed_images(**images, **asked)
    return [embedded.features, *embedded.inner_layers.values()]


@pytest.mark.parametrize("fusion", FUSIONS.values(), ids=FUSIONS)
@torch.no_grad()
def test_every_kind_of_fusion_takes_replaced_sources(fusion: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    llama = LLAMA | {"num_hidden_layers": 3}
    model, images = tiny_model(3, fusion=fusion, sources=SOURCES, llama=llama, normalize=True), pixels(3)
    model.computes_all_sources = True
    encoded = model.encoder(images)
    for norm in model.alignment.norms.values():
        torch.nn.init.uniform_(norm.bias, -1, 1)
    whole = features_of(model, pixel_values=images)
    monkeypatch.setattr(model.encoder, "forward", None)  # from here on, a call is an error
    monkeypatch.setattr(model.encoder, "on_demand", None)
    aligned = model.alignment(encoded)
    for found, expected in zip(features_of(model, sources=aligned), whole, strict=True):
        assert torch.equal(found, expected), "what is aligned is not aligned again"
    swapped = torch.tensor([1, 2, 0])
    others = AlignedSources({name: x[swapped] for name, x in aligned.items()})
    for place, name in enumerate(SOURCES):
        kept = torch.arange(len(SOURCES)) != place
        expected = features_of(model, sources=encoded | {name: encoded[name][swapped]})
        for found, right in zip(
            features_of(model, sources=replace_sources(aligned, others, kept)), expected, strict=True
        ):
            torch.testing.assert_close(found, right, rtol=0, atol=1e-5)
        without = features_of(model, sources=replace_sources(aligned, zeros(aligned), kept))
        model.alignment.keep([other for other in SOURCES if other != name])
        for found, right in zip(without, features_of(model, sources=encoded), strict=True):
            assert torch.equal(found, right), "zeros are what --sources shows the model"
        model.alignment.keep(SOURCES)


def test_each_image_has_its_own_sources_replaced() -> None:
    x = AlignedSources({"a": torch.arange(6.0).view(3, 2, 1), "b": torch.ones(3, 1, 4)})
    kept = torch.tensor([[True, True], [False, True], [False, False]])
    found = replace_sources(x, {"a": torch.full((2, 1), 9.0), "b": torch.zeros(1, 1, 4)}, kept)
    assert found["a"].flatten().tolist() == [0, 1, 9, 9, 9, 9]
    assert found["b"].sum((1, 2)).tolist() == [4, 4, 0]
    assert isinstance(found, AlignedSources)


def test_moments_are_those_of_all_images_and_noise_has_them() -> None:
    x = torch.randn(50, 3, 2, generator=torch.Generator().manual_seed(0)) * 5 + 7
    found = SourceMoments.of(AlignedSources({"a": part}) for part in x.split(7))
    torch.testing.assert_close(found.mean["a"], x.mean(0))
    torch.testing.assert_close(found.deviation["a"], x.std(0, correction=0))
    wide = SourceMoments({"a": torch.full((200, 50), 7.0)}, {"a": torch.full((200, 50), 5.0)})
    noise = wide.noise(3)["a"]
    assert noise.shape == (NOISE_DRAWS, 200, 50)
    assert float(noise.mean()) == pytest.approx(7, abs=0.1)
    assert float(noise.std()) == pytest.approx(5, abs=0.1)
    assert torch.equal(noise, wide.noise(3)["a"])
    assert not torch.equal(noise, wide.noise(4)["a"])


@torch.no_grad()
def test_beams_keep_the_sources_of_their_row() -> None:
    model = tiny_model(3, normalize=True, llama=LLAMA | {"tie_word_embeddings": False, "initializer_range": 0.6})
    aligned = model.alignment(model.encoder(pixels(2)))
    ids = torch.tensor([[BOS, *[IMAGE] * TOKENS, 7], [BOS, *[IMAGE] * TOKENS, 8]])
    how = {"max_new_tokens": 4, "num_beams": 2, "do_sample": False}
    expected = model.generate(ids, pixel_values=pixels(2), **how)
    assert torch.equal(model.generate(ids, image_sources=aligned, **how), expected)
