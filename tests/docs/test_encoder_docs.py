"""docs/encoders.md: what it writes in YAML is what the encoders take, and its tables are complete."""

import re
from pathlib import Path

import pytest
import yaml

from fvl_lightning.core import registry
from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.experiment import ExperimentConfig
from tests.conftest import ROOT
from tests.encoders.families import FAMILIES, REFUSED
from tests.encoders.towers import encoder_of

TEXT = (ROOT / "docs" / "encoders.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


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
