"""docs/scale.md says what there is: its commands are understood, its options exist, and what may change on a resume."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest

from fvl_lightning.core.config.fields import keys_that_change
from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.experiment import ExperimentConfig, TrainerConfig
from tests.conftest import ROOT, Run

PAGE = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
WAYS = [
    line.split("train ")[1].split(" ", 1)[1].split() for line in re.findall(r"^fvl train .*$", PAGE, flags=re.MULTILINE)
] + [f"trainer.{how}".split() for how in re.findall(r'"(strategy=[^"]*)"', PAGE)]
LAUNCHES = [shlex.split(line)[1:] for line in re.findall(r"^fvl launch .*$", PAGE, flags=re.MULTILINE)]


@pytest.mark.parametrize("words", WAYS, ids=" ".join)
def test_commands_are_understood(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(ExperimentConfig, Path("experiments/demo/finetune.yaml"), words)
    assert config.trainer.batch_size * config.trainer.world_size == 32


def test_the_ways_of_the_page_were_found() -> None:
    assert len(WAYS) == 5


@pytest.mark.parametrize("words", LAUNCHES, ids=" ".join)
def test_launches_are_understood(words: list[str], fvl_here: Run) -> None:
    done = fvl_here(ROOT, *words, "--dry-run")
    assert done.returncode == 0, done.stderr


def test_the_launches_of_the_page_were_found() -> None:
    assert len(LAUNCHES) == 3


def test_the_cost_of_packed_rows_is_that_of_the_benchmark() -> None:
    saved = json.loads((ROOT / "benchmarks/results/packed_attention.json").read_text(encoding="utf-8"))
    for name, digits in {"documents": 2, "masked": 1}.items():
        ratios = [case[name] / case["alone"] for case in saved["cases"]]
        assert f"{min(ratios):.{digits}f} to {max(ratios):.{digits}f} times" in PAGE
    assert max(case["documents"] / case["alone"] for case in saved["cases"]) < 2
    assert max(case["difference"] for case in saved["cases"]) < 1e-5


def test_what_may_change_on_a_resume_is_listed() -> None:
    paragraph = PAGE[PAGE.index("A resumed run may therefore use others") :].split("may be changed")[0]
    named = {f"trainer.{name}" for name in re.findall(r"`(\w+)`", paragraph)}
    assert named == keys_that_change(ExperimentConfig(), "placement")


def test_options_exist() -> None:
    fields = {field.name for field in dataclasses.fields(TrainerConfig)}
    named = set(re.findall(r"trainer\.(\w+)=", PAGE)) | set(re.findall(r"^\| `(\w+):", PAGE, flags=re.MULTILINE))
    assert {"strategy", "reshard_after_forward", "accumulate"} <= named <= fields
