"""Evaluations during the trainings of a comparison: no arm may see the rows that it is judged on."""

import shutil
from pathlib import Path

import pytest

from fvl_lightning.comparison.checks.evaluations import check_evaluations, evaluated_stages
from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.evaluation.tasks.lookup import find_task
from tests.integration.tiny_tasks import write_tasks


def test_rows_that_judge_the_arms_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tasks(tmp_path)
    plain = ExperimentConfig().with_overrides("stage=finetune")
    scored = plain.with_overrides("trainer.evaluate={tasks: [words.yaml], limit: 4}")
    stages = evaluated_stages({"concat": [plain], "gated": [plain, scored], "again": [scored]})
    assert [arm for arm, _ in stages] == ["gated", "again"]
    words = find_task("words.yaml")
    assert check_evaluations(stages, [words]).startswith("2 stages of the arms can be evaluated")
    judge = find_task("colours.yaml", ["data.files=validation.jsonl"])
    with pytest.raises(ConfigError, match=r"arm gated, .*words are in .*validation.jsonl, by which task col"):
        check_evaluations(stages, [words, judge])
    shutil.move(tmp_path / "validation.jsonl", tmp_path / "test.jsonl")
    with pytest.raises(DataError, match=r"trainer.evaluate.tasks: task words: no file .*validation.jsonl"):
        check_evaluations(stages, [])
