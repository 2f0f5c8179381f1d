"""docs/comparison.md: its files are comparisons, its table has the keys there are, and what it names exists."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from fvl_lightning.comparison.arms import arms_of
from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.core.config.loading import load_config
from tests.conftest import ROOT

TEXT = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
FILES = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("text", FILES, ids=[yaml.safe_load(text)["name"] for text in FILES])
def test_its_files_are_comparisons(text: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    config = load_config(ComparisonConfig, file)
    names = list(arms_of(config, file))
    assert len(names) == (6 if config.name == "sources" else 3)
    for stage in [config.encoder_stage, *config.stages]:
        assert (ROOT / "experiments" / "demo" / stage).is_file()


def test_it_names_every_key() -> None:
    table = TEXT.split("| key | |")[1].split("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in table.splitlines()[2:])))
    assert named == {field.name for field in fields(ComparisonConfig)} - {"seed"} | {"base"}


def test_the_files_it_runs_are_there() -> None:
    lines = re.findall(r"^ *fvl compare (experiments/.*?)(?: +#.*)?$", TEXT, re.MULTILINE)
    for path, *words in map(str.split, lines):
        assert load_config(ComparisonConfig, ROOT / path, words).stages
    assert len(lines) >= 3
