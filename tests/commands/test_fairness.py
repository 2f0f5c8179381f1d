"""Arms of a comparison train on the same samples at every step, whatever they make of an image."""

import json
from pathlib import Path

import pytest

from fvl_lightning.commands.arms import plan_alike
from fvl_lightning.commands.collect import check_same_samples
from fvl_lightning.core.errors import DataError
from fvl_lightning.training.run_folder import RunFolder
from tests.tiny_models import experiment


def run_with_keys(folder: Path, keys: dict[int, float]) -> RunFolder:
    """A run folder whose journal has these digests of steps."""
    folder.mkdir()
    lines = [json.dumps({"step": step, "data/step_keys": value}) + "\n" for step, value in keys.items()]
    (folder / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    return RunFolder(folder)


def test_rows_are_planned_by_the_largest_arm(tmp_path: Path) -> None:
    arms = {
        fusion: [experiment(tmp_path, stage, view, fusion=fusion) for stage, view in STAGES.items()]
        for fusion in ("concat", "token_concat", "gated")
    }
    plan_alike([arms])
    assert {stage.data.config.planned_tokens_per_image for stages in arms.values() for stage in stages} == {16}


def test_arms_of_one_size_plan_for_themselves(tmp_path: Path) -> None:
    arms = {fusion: [experiment(tmp_path, "finetune", "conversation", fusion=fusion)] for fusion in ("concat", "mean")}
    plan_alike([arms])
    assert {stage.data.config.planned_tokens_per_image for (stage,) in arms.values()} == {None}


def test_other_samples_at_a_step_are_found(tmp_path: Path) -> None:
    runs = {
        "one": run_with_keys(tmp_path / "a", {10: 5.0, 20: 2.0**52 - 1, 30: 7.0}),
        "two": run_with_keys(tmp_path / "b", {10: 5.0, 20: 2.0**52 - 1}),
    }
    check_same_samples("finetune", runs)
    runs["three"] = run_with_keys(tmp_path / "c", {10: 5.0, 20: 2.0**52 - 2})
    with pytest.raises(DataError, match="arms one and three trained on different samples at step 20 of finetune"):
        check_same_samples("finetune", runs)


STAGES = {"align": "caption", "finetune": "conversation"}
