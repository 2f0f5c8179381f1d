"""docs/presets.md says what the presets do."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.experiment import ExperimentConfig
from tests.conftest import ROOT
from tests.experiments.presets import ADAPTED, FLORENCE_VL, PRESETS, SIZES_BETWEEN, hardware, load

TEXT = (ROOT / "docs" / "presets.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (\d.b?/?\w+) \| (paper|released) \| (.+) \|$", TEXT, re.MULTILINE)


def test_every_preset_is_in_the_table() -> None:
    listed = re.findall(r"^\| `(\S+)\.yaml` ", TEXT, re.MULTILINE)
    assert sorted(listed) == sorted((*SIZES_BETWEEN, *PRESETS, *ADAPTED))
    assert hardware().keys() == set(listed)


def test_a_preset_is_written_for_the_gpus_that_it_names() -> None:
    for preset, (devices, _) in hardware().items():
        trainer = load(preset).trainer
        assert (trainer.world_size, trainer.strategy) == (devices, "fsdp" if devices > 1 else "single"), preset
        assert trainer.checkpoint_activations == ["encoder", "language_model"]


@pytest.mark.parametrize("stage", ["align", "pretrain", "finetune"])
def test_the_stages_of_small_and_medium_are_in_their_table(stage: str) -> None:
    (cells,) = re.findall(rf"^\| {stage} \| (\d.+) \|$", TEXT, re.MULTILINE)
    batch, rate, steps, warmup, _ = cells.split(" | ")
    for size in ("small", "medium"):
        config = load(f"{size}/{stage}")
        assert config.trainer.samples_per_step == int(batch)
        assert config.optimizer.learning_rate == float(rate)
        assert (config.trainer.max_steps, config.optimizer.warmup_steps) == (int(steps), int(warmup))


def test_every_recipe_has_a_row() -> None:
    assert {row[:2] for row in ROWS} == {(name, recipe) for name in FLORENCE_VL for recipe in ("paper", "released")}


@pytest.mark.parametrize(("name", "recipe", "cells"), ROWS)
def test_a_row_has_the_numbers_of_its_preset(name: str, recipe: str, cells: str) -> None:
    batch, rate, _, steps, warmup = cells.replace("*", "").split(" | ")
    config = load(f"florence_vl/{name}", f"recipe={recipe}")
    assert config.trainer.samples_per_step == int(batch)
    assert config.optimizer.learning_rate == float(rate)
    assert (config.trainer.max_steps, config.optimizer.warmup_steps) == (int(steps), int(warmup))


@pytest.mark.parametrize("name", FLORENCE_VL)
def test_what_is_bold_is_what_disagrees(name: str) -> None:
    paper, released = (cells.split(" | ")[:2] for row, _, cells in ROWS if row == name)
    for one, other in zip(paper, released, strict=True):
        assert one.startswith("**") == other.startswith("**") == (one != other)


def test_the_commands_name_presets_and_their_output() -> None:
    words = re.findall(r"^fvl train experiments/(florence_vl/\S+)\.yaml (.*)$", TEXT, re.MULTILINE)
    assert len(words) == 4
    chained = re.findall(r"^fvl train experiments/small/(\w+)\.yaml init_from=(\S+)$", TEXT, re.MULTILINE)
    for stage, init_from in chained:
        before = {"pretrain": "align", "finetune": "pretrain"}[stage]
        assert init_from == f"{load(f'small/{before}').output}/{before}"
    for (first, said), (second, more) in zip(words[::2], words[1::2], strict=True):
        start = load(first, *shlex.split(said))
        *taken, init_from = shlex.split(more)
        assert load(second, *taken, init_from).init_from == [f"{start.output}/{start.name}"]
        assert taken == shlex.split(said)


def test_the_example_stands_over_what_it_takes(tmp_path: Path) -> None:
    mine, variants = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    (tmp_path / "mine.yaml").write_text(mine, encoding="utf-8")
    config = load_config(ExperimentConfig, tmp_path / "mine.yaml")
    assert config.chosen == {"recipe": "released", "scale": "full"}
    assert (config.fusion.name, config.optimizer.learning_rate, config.trainer.max_steps) == ("gated", 2e-5, 19532)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({"seed": 3}), encoding="utf-8")
    (tmp_path / "variants.yaml").write_text(variants, encoding="utf-8")
    taken = load_config(ExperimentConfig, tmp_path / "variants.yaml", ["recipe=bold", "scale=tiny"])
    assert (taken.optimizer.learning_rate, taken.trainer.max_steps, taken.seed) == (1e-3, 100, 3)
