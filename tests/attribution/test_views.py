"""Sections with views of features: planted sources, the fusion's output, and what answers look at."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.encoding.questions import Question
from fvl_lightning.attribution.opened import OpenedRun
from fvl_lightning.attribution.views import answers
from fvl_lightning.attribution.views.answers import answer_attention_section
from fvl_lightning.attribution.views.colours import colour_maps
from fvl_lightning.attribution.views.features import FUSED, TOKENS, viewed_images, views_section, with_fused
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.types import FeatureSpec
from fvl_lightning.feature_analysis.images import ImageFeatures
from fvl_lightning.inference.answer_attention import answer_attention
from fvl_lightning.reporting.section import PER_SOURCE, section_markdown
from tests.tiny_models import BOS, IMAGE, pixels, tiny_talker
from tests.tiny_models import TOKENS as IMAGE_TOKENS

IMAGES = 90
PROMPT, WRITTEN = [BOS, *[IMAGE] * IMAGE_TOKENS, 7], [20, 21]


class TinyData:
    """Images of noise, one for each sample, with a question each."""

    encoder = SimpleNamespace(
        prompt=lambda messages: PROMPT,
        question=lambda messages: [7],
        encode_turns=lambda messages: SimpleNamespace(ids=[*PROMPT, *WRITTEN, 2], turn_ends=[len(PROMPT) + 2]),
    )

    def tile_counts(self, split: str, index: int) -> list[int]:
        return [1]

    def pixels(self, split: str, indices: list[int]) -> Tensor:
        return torch.cat([pixels(1, index) for index in indices])

    def sized(self, split: str, index: int, messages: Any) -> Any:
        return messages


def opened(images: int = IMAGES) -> OpenedRun:
    messages = ({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it ?"}]},)
    questions = [Question(f"k{index}", index, ("word", "colour")[index % 2], messages, "w8") for index in range(images)]
    run: Any = SimpleNamespace()
    data: Any = TinyData()
    return OpenedRun(run, tiny_talker(), data, "test", questions)


@pytest.fixture(scope="module")
def planted() -> OpenedRun:
    """A run whose caption is 3 parts of davit and 1 of noise, ocr the same as davit, and grounding noise."""
    run = opened()
    generator = torch.Generator().manual_seed(0)
    davit, noise, other = torch.randn(3, IMAGES, IMAGE_TOKENS, 16, generator=generator)
    turned = davit @ torch.linalg.qr(torch.randn(16, 16, generator=generator))[0]
    sources = {"davit": davit, "caption": 3**0.5 * turned + noise, "ocr": 2 * turned + 5, "grounding": other}
    run.__dict__["features"] = sources
    return run


def test_the_section_has_the_planted_numbers(planted: OpenedRun) -> None:
    section = views_section(planted)
    values: Any = json.loads(json.dumps(section.values))
    assert (values["images"], values["rows"], values["base"]) == (IMAGES, IMAGES * IMAGE_TOKENS, "davit")
    assert values[PER_SOURCE] == {name: pytest.approx(wanted, abs=0.08) for name, wanted in
                                  (("davit", 0), ("caption", 0.25), ("ocr", 0), ("grounding", 1))}  # fmt: skip
    low, high = values["beyond"]["caption"]["interval"]
    assert low < values[PER_SOURCE]["caption"] < high < low + 0.1
    assert values["cka"]["davit"]["ocr"] == pytest.approx(1, abs=1e-5)
    assert values["cka"]["davit"]["grounding"] < 0.2
    assert 14 < values["effective_rank"]["davit"] <= 16
    assert list(values["effective_rank"]) == ["davit", "caption", "ocr", "grounding", FUSED, TOKENS]
    text = section_markdown(section)
    assert "Not explained by `davit` at the same place: `caption` 2" in text
    assert "`ocr` 0.0%" in text
    assert [*section.figures] == ["views_pca", "views_similarity"]


def test_the_fusion_and_the_image_tokens_are_those_of_the_model(planted: OpenedRun) -> None:
    features = viewed_images(planted, 4)
    assert features.samples == (0, 22, 45, 67)
    found, model = with_fused(planted, features), planted.built.model
    with torch.no_grad():
        tokens = model.embed_images(sources=dict(features.sources)).features
        fused = model.fusion(model.alignment(dict(features.sources))).features
    assert torch.equal(found.sources[TOKENS], tokens)
    assert torch.equal(found.sources[FUSED], fused)
    assert not model.fusion._forward_hooks


def test_only_sources_of_one_width_share_colours() -> None:
    x = torch.randn(6, 4, 8, generator=torch.Generator().manual_seed(0))
    sources = {"a": x, "b": x + 3, "wide": torch.cat([x, x], 2), "tokens": x, "no map": x}
    specs = {name: FeatureSpec(4, y.shape[2], (2, 2)) for name, y in sources.items()}
    features = ImageFeatures(sources, specs | {"no map": FeatureSpec(4, 8, None)}, "test", tuple(range(6)), (0,) * 6)
    maps, sentence = colour_maps(features, alone=("tokens",))
    assert [*maps] == ["a (A)", "b (A)", "wide (B)", "tokens (C)"]
    assert torch.allclose(maps["a (A)"], maps["b (A)"], atol=1e-5)
    assert maps["a (A)"].shape == (5, 2, 2, 3)
    assert "same letter" in sentence


def test_answers_look_where_their_attention_is() -> None:
    run = opened(3)
    section = answer_attention_section(run)
    run.__dict__.pop("features")
    shares = []
    for index in range(3):
        found = answer_attention(run.built, PROMPT, WRITTEN, pixel_values=pixels(1, index))
        shares.append(found.sum(1))
    layers: Any = section.values["layers"]
    assert [layer["share"] for layer in layers] == pytest.approx(torch.stack(shares).mean(0).tolist(), abs=1e-6)
    assert section.values["uniform"] == pytest.approx((IMAGE_TOKENS / 6 + IMAGE_TOKENS / 7) / 2)
    assert all(1 <= layer["places"] <= IMAGE_TOKENS for layer in layers)
    assert [*section.figures] == ["answer_attention_maps"]


def test_a_model_without_attention_weights_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Tensor:
        raise ConfigError("the language model mamba has an attention of its own")

    monkeypatch.setattr(answers, "answer_attention", refuse)
    section = answer_attention_section(opened(1))
    assert section.paragraphs == ["No attention can be shown: the language model mamba has an attention of its own."]
