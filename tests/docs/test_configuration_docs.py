"""docs/configuration.md: what it says that values mean is what loading makes of them."""

import re
from pathlib import Path

import pytest

from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
FIRST_ROW = next(line for line in PAGE.splitlines() if line.startswith("| `name: 12e5`"))
TEXTS = re.findall(r"`(?:name: )?([^`]+)`", FIRST_ROW)


def loaded(tmp_path: Path, text: str) -> ExperimentConfig:
    file = tmp_path / "experiment.yaml"
    file.write_text(text, encoding="utf-8")
    return load_config(ExperimentConfig, file)


def test_the_row_names_texts() -> None:
    assert {"12e5", "no", "12:30"} <= set(TEXTS)


@pytest.mark.parametrize("text", TEXTS)
def test_text_keeps_its_characters(text: str, tmp_path: Path) -> None:
    assert loaded(tmp_path, f"name: {text}\n").name == text


def test_one_value_is_a_list_of_one(tmp_path: Path) -> None:
    assert loaded(tmp_path, "name: x\ninit_from: runs/x\n").init_from == ["runs/x"]


def test_a_small_number_without_a_point(tmp_path: Path) -> None:
    assert loaded(tmp_path, "name: x\noptimizer: {learning_rate: 1e-3}\n").optimizer.learning_rate == 0.001


@pytest.mark.parametrize(
    "text",
    [
        "name: x\nfeature_cache: None\n",
        "name: null\n",
        "name: ../x\n",
        "name: x\nname: y\n",
        "name: x\ntrainer: {keep_best: 2}\n",
        "name: x\noptimizer: {learning_rate: .nan}\n",
    ],
)
def test_what_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        loaded(tmp_path, text)
