"""Arms of prompts: their features from the tiny encoder, and the section with their answers."""

import json
from math import isnan, nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fvl_lightning.attribution.views import prompt_arms
from fvl_lightning.attribution.views.prompt_arms import PromptFeatures, prompt_features
from fvl_lightning.attribution.views.prompts import prompts_sections, section_of
from fvl_lightning.comparison.result_files.statistics import Contrast
from fvl_lightning.core.florence2_prompts import RELEASED_PROMPTS
from fvl_lightning.encoders.florence2 import Florence2Encoder
from fvl_lightning.evaluation.statistics.resampling import Estimate
from fvl_lightning.reporting.section import section_markdown
from tests.tiny_models import BOS, EOS, PROMPT_IDS, pixels, tiny_encoder

THREE = ["davit", "caption", "ocr", "grounding"]
SOURCES = {"three": THREE, "again": THREE, "none": ["davit"], "ocr": ["davit", "ocr"], "other": ["davit", "ocr"]}
"""{arm: its sources}; `other` has other tokens for the same name."""


class Images:
    """24 samples of noise."""

    shards = ("a.tar",)

    def __len__(self) -> int:
        return 24

    def image_count(self, index: int) -> int:
        return 1

    def store(self, split: str) -> "Images":
        return self

    def tile_counts(self, split: str, index: int) -> list[int]:
        return [1]

    def pixels(self, split: str, indices: list[int]) -> Tensor:
        return torch.cat([pixels(1, index) for index in indices])


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Five arms of two seeds, which share an encoder but for arm `again`; `runs` lists the runs that were opened."""
    runs: list[tuple[str, int]] = []

    def open_model(run: Any, split: str, accelerator: str | None) -> Any:
        runs.append((run.arm, run.seed))
        ids = PROMPT_IDS | ({"ocr": [BOS, 30, 31, 32, EOS]} if run.arm == "other" else {})
        encoder = tiny_encoder(run.seed if run.arm == "again" else 0, sources=SOURCES[run.arm], prompt_ids=ids)
        return SimpleNamespace(model=SimpleNamespace(encoder=encoder)), Images()

    def run_of(arm: str, seed: int) -> Any:
        config = Florence2Encoder.Config(sources=SOURCES[arm])
        experiment = SimpleNamespace(encoder=SimpleNamespace(config=config))
        return SimpleNamespace(arm=arm, seed=seed, experiment=lambda: experiment)

    monkeypatch.setattr(prompt_arms, "open_model", open_model)
    cells = [
        SimpleNamespace(arm=arm, seed=seed, result=SimpleNamespace(encoder_hash=f"{arm == 'again' and seed}"))
        for arm in SOURCES
        for seed in (0, 1)
    ]
    results = SimpleNamespace(cells=cells, statistics=SimpleNamespace(baseline="three"), differences={})
    arms = {arm: {seed: run_of(arm, seed) for seed in (0, 1)} for arm in SOURCES}
    return SimpleNamespace(arms=arms, results=results, progress=lambda *_: None, runs=runs)


def test_the_features_are_those_of_each_arms_encoder(opened: Any) -> None:
    found = prompt_features(opened)
    assert sorted(opened.runs) == [("again", 0), ("again", 1), ("none", 0), ("ocr", 0), ("other", 0), ("three", 0)]
    assert [*found] == [*SOURCES]
    assert found["three"].prompts == RELEASED_PROMPTS
    assert found["three"].cka == pytest.approx(1)
    assert 0 < found["again"].cka < 0.999, "one of its two encoders is another one"
    assert 0 < found["other"].cka < 1
    assert found["other"].cka != found["ocr"].cka, "another prompt under the same name"
    assert isnan(found["none"].cka)
    assert isnan(found["none"].beyond.value)
    assert found["none"].rank < found["three"].rank
    low, high = found["three"].beyond.interval
    assert low < found["three"].beyond.value < high


def test_only_a_comparison_of_prompts_has_the_section(opened: Any) -> None:
    assert prompts_sections(opened) == []
    opened.results.differences = {"ocr": {"encoder.sources": [THREE, ["davit", "ocr"]]}}
    for by_seed in opened.arms.values():
        for run in by_seed.values():
            run.experiment().encoder.config = object()
    assert prompts_sections(opened) == []
    assert opened.runs == []


def results() -> Any:
    """Scores of two seeds; arm k differs from the baseline by -0.05 k."""
    scores = {"three": 0.8, "a": 0.75, "b": 0.7, "c": 0.65, "d": 0.6, "none": 0.5}
    cells = [
        SimpleNamespace(arm=arm, seed=seed, result=SimpleNamespace(score=lambda _, value=value + 0.01 * seed: value))
        for arm, value in scores.items()
        for seed in (0, 1)
    ]
    contrasts = [
        Contrast(arm, value - 0.8, "worse" if value < 0.7 else "not separated", "", interval=(value - 0.9, value - 0.7))
        for arm, value in scores.items()
        if arm != "three"
    ]
    statistics = SimpleNamespace(baseline="three", contrasts=contrasts)
    return SimpleNamespace(cells=cells, statistics=statistics, metric="accuracy/macro", metric_title="accuracy")


def test_the_section_has_answers_beside_features() -> None:
    """Features that change more go with scores that change more: a rank correlation of 1."""
    prompts = {"caption": "What does the image | describe?"}
    cka = {"three": 1.0, "a": 0.99, "b": 0.9, "c": 0.8, "d": 0.5}
    features = {arm: PromptFeatures(prompts, 20.0, Estimate(0.2, (0.1, 0.3)), value) for arm, value in cka.items()}
    features["none"] = PromptFeatures({}, 10.0, Estimate(nan), nan)
    section = section_of(results(), features)
    values: Any = section.values
    assert values["rank_correlation"] == pytest.approx(1)
    assert values["arms"]["d"] | {"score": None} == {
        "prompts": prompts, "score": None, "difference": pytest.approx(-0.2), "verdict": "worse",
        "effective_rank": 20.0, "beyond": {"value": 0.2, "interval": [0.1, 0.3]}, "cka": 0.5,
    }  # fmt: skip
    assert values["arms"]["d"]["score"]["mean"] == pytest.approx(0.605)
    json.dumps(values)
    text = section_markdown(section)
    assert "those of `d` are the farthest from those of `three`, CKA 0.5000" in text
    assert "in `c` (-0.150), `d` (-0.200), `none` (-0.300) of 5 arms" in text
    assert r"What does the image \| describe?" in text
    assert "| none | 0 | 0.505 (" in text
    assert [*section.figures] == ["prompts_features"]


def test_without_seeds_nothing_is_claimed(tmp_path: Path) -> None:
    found = results()
    found.statistics.contrasts = [Contrast("none", -0.3, "not testable", "")]
    section = section_of(found, {arm: PromptFeatures({}, nan, Estimate(nan), nan) for arm in ("three", "none")})
    assert "no difference to `three` can be tested" in section.paragraphs[0]
    assert not section.figures
