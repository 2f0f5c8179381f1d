"""docs/fusions.md: every fusion is in the gallery with its drawing and its right cost, and the plugins work."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from fvl_lightning.core import registry
from fvl_lightning.core.plugins import import_plugin
from fvl_lightning.core.types import IGNORE_INDEX, FeatureSpec
from fvl_lightning.fusions.base import build_fusion
from tests.conftest import ROOT
from tests.contracts.checks import check_fusion
from tests.docs.readme import blocks
from tests.tiny_models import BOS, IMAGE, pixels, tiny_model

PAGE = ROOT / "docs" / "fusions.md"
TEXT = PAGE.read_text(encoding="utf-8")
DRAWINGS = ROOT / "docs" / "images" / "fusions"
KINDS = ("maximum.py", "summary.py", "asked.py", "reminder.py")
MAX_LINES = 30
COSTS = re.findall(r"^\| `(\w+)`(.*?) \| `(.+)` \| `(.+)` \| `(.+)` \|$", TEXT, re.MULTILINE)


def fusions() -> list[str]:
    """The names of the kit's own fusions."""
    names = registry.names("fusion")
    return [name for name in names if registry.component("fusion", name).__module__.startswith("fvl_lightning.")]


def test_the_gallery_has_every_fusion_with_its_drawing() -> None:
    gallery = TEXT[TEXT.index("## The gallery") : TEXT.index("## Source dropout")]
    sections = re.findall(r"^#### (\w+)\n\n!\[.+\]\(images/fusions/(\w+)\.svg\)\n\n(.+)", gallery, re.MULTILINE)
    assert sorted(name for name, _, _ in sections) == fusions()
    assert [name for name, drawing, _ in sections if name != drawing] == []
    assert sorted({name for name, *_ in COSTS}) == fusions()


def test_the_drawings_are_those_of_the_script() -> None:
    spec = importlib.util.spec_from_file_location("draw_fusions", DRAWINGS / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    drawn = {path.stem: path.read_text(encoding="utf-8") for path in DRAWINGS.glob("*.svg")}
    assert drawn == {name: script.draw(drawing) for name, drawing in script.DRAWINGS.items()}


@pytest.mark.parametrize(("name", "fields", "parameters", "tokens", "width"), COSTS)
def test_the_costs_are_those_of_the_fusion(name: str, fields: str, parameters: str, tokens: str, width: str) -> None:
    config = dict(re.findall(r"(\w+): (\w+)", fields))
    component = registry.component("fusion", name)
    for sizes in ({"K": 3, "D": 8, "N": 4, "Q": 5}, {"K": 4, "D": 12, "N": 9, "Q": 7}):
        side = round(sizes["N"] ** 0.5)
        sources = {f"source_{k}": FeatureSpec(sizes["N"], sizes["D"], (side, side)) for k in range(sizes["K"])}
        fusion: Any = build_fusion(component, component.Config(**config), sources, sizes["Q"])
        assert sum(p.numel() for p in fusion.parameters()) == eval(parameters, {}, sizes)
        assert (fusion.output.tokens, fusion.output.dim) == (eval(tokens, {}, sizes), eval(width, {}, sizes))


def test_what_was_measured_is_what_the_comparison_found() -> None:
    saved = json.loads((ROOT / "benchmarks" / "results" / "fusions.json").read_text(encoding="utf-8"))
    sentences = " ".join(one["sentence"] for one in saved["statistics"]["contrasts"])
    found = {arm: f"{float(by):.3f}" for arm, by in re.findall(r"(\w+) is worse than concat by -([\d.]+)", sentences)}
    sections = re.split(r"^#### ", TEXT, flags=re.MULTILINE)
    shown = {one.split()[0]: re.search(r"worse\s+than\s+concat\s+by\s+(\d\.\d+)", one) for one in sections[1:]}
    measured = {name: match[1] for name, match in shown.items() if match}
    assert set(measured) == {"mean", "token_concat", "gated", "attention"}
    assert measured == {name: found[name] for name in measured}


@pytest.fixture
def plugin(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The registered name of a plugin of the page."""
    registry.names("fusion")
    monkeypatch.setitem(registry._components, "fusion", dict(registry._components["fusion"]))
    (text,) = [block for block in blocks("python", PAGE) if block.startswith(f"# {request.param}\n")]
    assert len(text.splitlines()) <= MAX_LINES
    (tmp_path / request.param).write_text(text, encoding="utf-8")
    import_plugin(str(tmp_path / request.param), tmp_path)
    return request.param.removesuffix(".py")


@pytest.mark.parametrize("plugin", KINDS, indirect=True)
def test_a_fusion_of_each_kind(plugin: str) -> None:
    """It keeps the contracts, and every parameter of a whole model has a gradient."""
    check_fusion(registry.component("fusion", plugin))
    model = tiny_model(fusion=plugin).train()
    ids = torch.tensor([[BOS, *[IMAGE] * model.image_spec.tokens_per_image, 7, 8]])
    labels = torch.where(ids < 7, IGNORE_INDEX, ids)
    question = torch.tensor([[5, 6]]) if model.conditioned else None
    model(ids, labels=labels, pixel_values=pixels(1), question_ids=question).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
