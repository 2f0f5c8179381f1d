"""docs/comparison.md: its files are comparisons, its table has the keys there are, and what it names exists."""

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from fvl_lightning.comparison.arms import arms_of
from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.comparison.estimates.estimate import PlanOptions
from fvl_lightning.comparison.estimates.measured_steps import FILE
from fvl_lightning.comparison.estimates.summary import PLAN
from fvl_lightning.core.config.loading import load_config
from fvl_lightning.profiling.devices import GPUS, SUSTAINED
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


def test_it_names_the_gpus_and_the_files_of_a_plan() -> None:
    section = TEXT[TEXT.index("## A plan before it starts") : TEXT.index("## Cells")]
    (named,) = re.findall(r"`--device` takes (.+?)\. Without it", section, re.DOTALL)
    assert re.split(r", | or ", named.replace("\n", " ")) == sorted(GPUS)
    assert f"or {SUSTAINED:.0%}".replace("%", " %") in section.replace("\n", " ")
    for file in (PLAN, FILE):
        assert f"runs/<comparison>/{file}" in section
    options = {option.name for option in inspect.signature(PlanOptions).parameters.values()}
    for option in options:
        assert f"--{option.replace('_', '-')}" in section


def test_the_files_it_runs_are_there() -> None:
    lines = re.findall(r"^ *fvl compare (experiments/.*?)(?: +--plan.*| +#.*)?$", TEXT, re.MULTILINE)
    for path, *words in map(str.split, lines):
        assert load_config(ComparisonConfig, ROOT / path, words).stages
    assert len(lines) >= 3
