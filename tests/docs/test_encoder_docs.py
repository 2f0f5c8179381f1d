"""docs/encoders.md: what it writes in YAML is what the encoders take, and its tables are complete."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from fvl_lightning.core import registry
from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.plugins import import_plugin
from fvl_lightning.core.types import FeatureSpec
from tests.conftest import ROOT
from tests.contracts.checks import check_encoder
from tests.encoders.families import FAMILIES, REFUSED
from tests.encoders.towers import encoder_of

TEXT = (ROOT / "docs" / "encoders.md").read_text(encoding="utf-8")
BLOCKS = [text for text in re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL) if "plugins" not in text]
(PLUGIN,) = re.findall(r"^```python\n(# timm_encoder.py\n.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("text", BLOCKS, ids=range(len(BLOCKS)))
def test_what_stands_there_is_an_experiments_encoder(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8")
    encoder = load_config(ExperimentConfig, path).encoder
    assert encoder.name in registry.names("encoder")


def test_the_one_from_random_weights_is_built() -> None:
    (entry,) = [entry for text in BLOCKS if "model" in (entry := yaml.safe_load(text)["encoder"])]
    assert encoder_of(entry).specs["last"].grid == (8, 8)


def test_the_tables_are_complete() -> None:
    rows = re.findall(r"^\| `([a-z0-9_]+)` \|", TEXT, re.MULTILINE)
    assert {name for name in rows if name in registry.names("encoder")} == {"florence2", "hf_vision", "ensemble"}
    assert set(registry.names("encoder")) == {"florence2", "hf_vision", "ensemble"}
    tried, refused = (
        set(re.findall(r"`([a-z0-9_-]+)`", "".join(re.findall(pattern, TEXT, re.MULTILINE))))
        for pattern in (r"^\| (?:image and text|self-s|segmen|transf|convol).*$", r"^\| (`.*`)[^|]*\| [a-z].*$")
    )
    assert tried == set(FAMILIES)
    assert set(REFUSED) - {"bert"} <= refused


class StandIn(nn.Module):
    """A tower with the methods of timm's that the plugin calls: two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 6, 2, 2)])
        self.scale = nn.Parameter(torch.ones(1))
        self.feature_info = ["first", "second"]

    def prune_intermediate_layers(self, indices: list[int], prune_norm: bool, prune_head: bool) -> None:
        self.blocks = self.blocks[: max(indices) + 1]

    def forward_intermediates(self, images: Tensor, indices: list[int], intermediates_only: bool) -> list[Tensor]:
        maps = [images * self.scale]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return [maps[index + 1] for index in indices]


def test_the_plugin_for_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All contracts of an encoder, on a stand-in for timm; docs/encoders.md names what was tried with timm itself."""
    settings = {"input_size": (3, 16, 16), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    stand_in: Any = SimpleNamespace(
        create_model=lambda name, pretrained, num_classes: StandIn(),
        data=SimpleNamespace(resolve_model_data_config=lambda tower: settings),
    )
    monkeypatch.setitem(sys.modules, "timm", stand_in)
    monkeypatch.setitem(registry._components, "encoder", dict(registry._components["encoder"]))
    (tmp_path / "timm_encoder.py").write_text(PLUGIN, encoding="utf-8")
    import_plugin(str(tmp_path / "timm_encoder.py"), tmp_path)
    component = registry.component("encoder", "timm")
    encoder = encoder_of({"name": "timm", "model": "convnext_atto", "layers": [-1, 0]})
    assert encoder.specs == {"layer_1": FeatureSpec(16, 8, (4, 4)), "layer_2": FeatureSpec(4, 6, (2, 2))}
    check_encoder(component, component.Config(layers=[0]))
