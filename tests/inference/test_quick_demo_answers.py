"""`fvl evaluate` and `fvl generate` on the runs of the quick demo."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from datamodules.demo.levels import LEVELS
from datamodules.demo.record import make_sample
from datamodules.demo.text import KINDS
from fvl_lightning.runs.folder import RunFolder
from tests.conftest import Run

RUN = "runs/demo/concat/finetune"


@pytest.fixture(scope="module")
def scores(quick_demo: Path) -> dict[str, Any]:
    """What the comparison says of the run."""
    comparison = json.loads((quick_demo / "runs" / "demo-quick" / "comparison.json").read_text(encoding="utf-8"))
    return comparison["arms"]["concat"]


def test_evaluate_gives_the_scores_of_the_comparison(quick_demo: Path, scores: dict[str, Any], fvl_here: Run) -> None:
    done = fvl_here(quick_demo, "evaluate", RUN)
    assert done.returncode == 0, done.stderr
    rows = {cells[0]: cells[1:] for line in done.stdout.splitlines() if len(cells := _cells(line)) == 5}
    assert set(rows) == {*KINDS, "macro", "overall"}
    columns = [scores[name] for name in ("accuracy", "image_zeroed", "image_shuffled", "prior")]
    for kind in KINDS:
        assert rows[kind] == [f"{column['by_kind'][kind]:.3f}" for column in columns]
    assert rows["macro"] == [f"{column['macro']:.3f}" for column in columns]


def test_a_run_is_found_by_its_id_and_an_encoder_has_scores_of_its_own(quick_demo: Path, fvl_here: Run) -> None:
    encoder = RunFolder(quick_demo / "runs" / "demo-quick" / "encoder_pretrain")
    done = fvl_here(quick_demo, "evaluate", encoder.info["mlflow_run_id"])
    assert done.returncode == 0, done.stderr
    rows = {cells[0]: cells[1] for line in done.stdout.splitlines() if len(cells := _cells(line)) == 2}
    assert rows == {name: f"{value:.3f}" for name, value in encoder.info["scores"].items()}


def test_generate_answers_about_a_picture(quick_demo: Path, tmp_path: Path, fvl_here: Run) -> None:
    _, record, png = make_sample(3, LEVELS["easy"], "test", 0)
    picture = tmp_path / "picture.png"
    picture.write_bytes(png)
    question = record["messages"][0]["content"][1]["text"]
    words = ("generate", RUN, "--image", str(picture), "--prompt", question)
    done = fvl_here(quick_demo, *words)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"[a-z0-9 ]+\n", done.stdout), done.stdout
    assert fvl_here(quick_demo, *words).stdout == done.stdout, "greedy answers are always the same"
    hot = {fvl_here(quick_demo, *words, "--temperature", "5", "--max-tokens", "5").stdout for _ in range(3)}
    assert len(hot) > 1, "sampled ones are not"


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("│")[1:-1]]
