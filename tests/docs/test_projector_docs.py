"""docs/projectors.md: its numbers are those of the projectors, and its example keeps their contracts."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.core import registry
from fvl_lightning.core.config.loading import choose, load_config
from fvl_lightning.core.plugins import import_plugin
from fvl_lightning.core.types import FeatureSpec
from tests.conftest import ROOT
from tests.contracts.checks import check_projector
from tests.docs.readme import blocks

PAGE = ROOT / "docs" / "projectors.md"
SOURCES = {name: FeatureSpec(576, 1024, (24, 24)) for name in ("davit", "caption", "ocr", "grounding")}
FUSED = FeatureSpec(576, 4 * 1024, (24, 24), SOURCES)


def test_every_projector_has_its_tokens_and_parameters() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)`(?:, `by: (\w+)`)? \| (\d+) \| ([\d.]+)M \|", text, re.MULTILINE)
    assert {name for name, *_ in rows} == set(registry.names("projector"))
    for name, by, tokens, millions in rows:
        choice = choose("projector", {"name": name, **({"by": by} if by else {})})
        with torch.device("meta"):
            projector = choice.component(choice.config, FUSED, 3072)
        parameters = sum(parameter.numel() for parameter in projector.parameters())
        assert (projector.tokens, f"{parameters / 1e6:.1f}") == (int(tokens), millions), name
        assert f"`{name}`" in text.split("## What each can read")[1].split("## A token budget")[0]


def test_the_comparison_and_the_projectors_of_sources_are_valid(tmp_path: Path) -> None:
    sources, budget = (yaml.safe_load(block) for block in blocks("yaml", PAGE))
    with torch.device("meta"):
        choice = choose("projector", sources["projector"])
        on_tokens = FeatureSpec(4 * 576, 1024, None, SOURCES)
        assert choice.component(choice.config, on_tokens, 3072).tokens == 144 + 3 * 36
    (tmp_path / "budget.yaml").write_text(yaml.safe_dump(budget), encoding="utf-8")
    assert load_config(ComparisonConfig, tmp_path / "budget.yaml").image_tokens == 4


def test_a_projector_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._components, "projector", dict(registry._components["projector"]))
    (text,) = blocks("python", PAGE)
    (tmp_path / "halves.py").write_text(text, encoding="utf-8")
    import_plugin(str(tmp_path / "halves.py"), tmp_path)
    check_projector(registry.component("projector", "halves"))
