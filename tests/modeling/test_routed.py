"""A routed fusion computes only the sources that an image needs, with the features of computing all of them."""

from typing import Any

import pytest
import torch

from tests.tiny_models import pixels, tiny_model

MOE = {"name": "moe", "top": 2}
SOURCES = ["davit", "caption", "ocr", "davit_stage_1"]


@pytest.mark.parametrize("normalize", [False, True])
def test_it_has_the_features_of_computing_every_source(normalize: bool) -> None:
    model, images = tiny_model(3, fusion=MOE, normalize=normalize, sources=SOURCES), pixels(6)
    with torch.no_grad():
        found = model.embed_images(images)
        model.computes_all_sources = True
        expected = model.embed_images(images)
        cached = model.embed_images(sources=model.encoder(images))
    torch.testing.assert_close(found.features, expected.features, rtol=0, atol=1e-6)
    torch.testing.assert_close(cached.features, expected.features, rtol=0, atol=1e-6)


def test_a_source_is_computed_for_the_images_that_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = tiny_model(3, fusion=MOE, sources=SOURCES), pixels(6)
    asked: dict[str, int] = {}
    on_demand = model.encoder.on_demand

    def counting(pixel_values: Any) -> Any:
        source = on_demand(pixel_values)

        def get(name: str, places: Any) -> Any:
            asked[name] = len(places)
            return source(name, places)

        return get

    monkeypatch.setattr(model.encoder, "on_demand", counting)
    with torch.no_grad():
        loads = model.embed_images(images).diagnostics
    assert asked.pop("davit") == 6, "the router reads the first source"
    loads = {name.removeprefix("load/"): float(value) for name, value in loads.items() if name.startswith("load/")}
    assert list(loads) == SOURCES
    assert sum(loads.values()) == pytest.approx(MOE["top"]), "the loads add up to the number of chosen sources"
    assert asked == {name: round(6 * loads[name]) for name in SOURCES[1:] if loads[name]}


def test_in_training_a_source_that_nobody_needs_still_reaches_its_parameters() -> None:
    model = tiny_model(fusion=MOE | {"top": 1}, sources=SOURCES).train()
    with torch.no_grad():
        model.fusion.router.weight.zero_()
        model.fusion.router.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    embedded = model.embed_images(pixels(2))
    assert float(embedded.diagnostics["load/davit"]) == 1
    embedded.features.sum().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None and name.startswith(("encoder", "fusion"))]
    plain = tiny_model(fusion="gated", sources=SOURCES).train()
    plain.embed_images(pixels(2)).features.sum().backward()
    always = [name for name, p in plain.named_parameters() if p.grad is None and name.startswith(("encoder", "fusion"))]
    assert idle == always
