"""`fvl evaluate --tasks` as a command, with a LoRA run and with its export: ranks, kill -9, and batch sizes."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from fvl_lightning.evaluation import batched_answers
from tests.conftest import ONE_THREAD, TINY, Run, furnish

pytestmark = pytest.mark.slow

COLOURS = ("red", "blue", "green", "yellow", "purple")
ASKED = ("what colour is the square?", "what shape is it?", "how many?", "where is it?", "what word?")
QUESTIONS = 300
"""More than two batches, so that two ranks share them and a kill leaves some."""
TASKS = ("--tasks", "short.yaml,choice.yaml")
MODELS = ("runs/on_run", "models/merged")
KILLED = """
import os, signal, sys

from fvl_lightning.cli.main import main
from fvl_lightning.evaluation import batched_answers

original, done, last = batched_answers._answer, [], int(sys.argv[1])


def answer(*given):
    if len(done) == last:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(1)
    return original(*given)


batched_answers._answer = answer
sys.argv = ["fvl", *sys.argv[2:]]
main()
"""


def write_tasks(folder: Path) -> None:
    """Writes 300 questions about 60 pictures, once for short answers and once with options."""
    (folder / "pictures").mkdir()
    rows = []
    for number in range(QUESTIONS):
        picture, colour = number // 5, COLOURS[number // 5 % len(COLOURS)]
        if number % 5 == 0:
            content, image = io.BytesIO(), Image.new("RGB", (64, 64), "white")
            image.paste(colour, (picture % 30, picture % 20, picture % 30 + 25, picture % 20 + 25))
            image.save(content, "PNG")
            (folder / "pictures" / f"{picture}.png").write_bytes(content.getvalue())
        asked = {"image": f"{picture}.png", "question": ASKED[number % 5]}
        rows.append(asked | {"answer": colour, "options": list(COLOURS)})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    common = {"data": {"files": "rows.jsonl", "images": "pictures"}}
    choice = {"fields": {"choices": ["options"], "answers_as": "option"}, "answer": {"by": "likelihood"}}
    for name, task in {"short": {"answer": {"tokens": 6}}, "choice": choice}.items():
        values = {"title": name, "metric": "accuracy"} | common | task
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, fvl_here: Run) -> Path:
    """A working folder with the tasks, a LoRA run and its merged export, and what one process answers."""
    folder = furnish(tmp_path_factory.mktemp("evaluated"), tiny_data)
    write_tasks(folder)
    longer = ("trainer.max_steps=40", "optimizer.warmup_steps=5")
    for words in (
        ("train", "experiments/demo/finetune.yaml", *TINY, *longer, "name=whole"),
        ("train", "experiments/demo/finetune_lora.yaml", *TINY, "name=on_run", "init_from=[runs/whole]",
         "optimizer.learning_rate=0.02"),
        ("export", "runs/on_run", "models/merged", "--merge"),
        ("evaluate", *MODELS, *TASKS, "--output", "one"),
    ):  # fmt: skip
        done = fvl_here(folder, *words)
        assert done.returncode == 0, done.stderr
    return folder


def lines(folder: Path, output: str, model: str) -> dict[str, list[dict[str, Any]]]:
    """{task: what was written of every question}."""
    files = {task: folder / output / task / f"{model.replace('/', '_')}.jsonl" for task in ("short", "choice")}
    return {task: [json.loads(line) for line in file.open(encoding="utf-8")] for task, file in files.items()}


@pytest.mark.parametrize("model", MODELS)
def test_two_ranks_answer_as_one(folder: Path, fvl: Run, model: str) -> None:
    done = fvl(folder, "evaluate", model, *TASKS, "--output", "two", "--devices", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1
    found = lines(folder, "one", model)
    assert lines(folder, "two", model) == found
    assert len({line["filtered_resps"] for line in found["short"]}) > 2, "answers that are all alike compare nothing"
    assert len({str(line["resps"]) for line in found["choice"]}) > QUESTIONS / 5


@pytest.mark.parametrize("model", MODELS)
def test_a_killed_evaluation_goes_on(folder: Path, fvl: Run, model: str) -> None:
    words = ("evaluate", model, *TASKS, "--output", "killed")
    command = [sys.executable, "-c", KILLED, "1", *words]
    done = subprocess.run(command, cwd=folder, env=os.environ | ONE_THREAD, capture_output=True, check=False)
    assert done.returncode == -9
    kept = list((folder / "killed" / "short").glob(f".{model.replace('/', '_')}/answers-0.jsonl"))
    assert len(kept) == 1
    assert 0 < sum(len(json.loads(line)["texts"]) for line in kept[0].open()) < QUESTIONS
    done = fvl(folder, *words)
    assert done.returncode == 0, done.stderr
    assert lines(folder, "killed", model) == lines(folder, "one", model)


@pytest.mark.parametrize("model", MODELS)
def test_batches_make_no_difference(folder: Path, fvl_here: Run, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, and token for token: the answers are texts of at most six tokens."""
    for rows in (1, 16):
        monkeypatch.setattr(batched_answers, "QUESTIONS_PER_BATCH", rows)
        done = fvl_here(folder, "evaluate", model, *TASKS, "--limit", "70", "--output", f"rows-{rows}")
        assert done.returncode == 0, done.stderr
    one, sixteen = (lines(folder, f"rows-{rows}", model) for rows in (1, 16))
    assert [line["resps"] for line in one["short"]] == [line["resps"] for line in sixteen["short"]]
    assert [line["accuracy"] for line in one["choice"]] == [line["accuracy"] for line in sixteen["choice"]]
    assert len({line["filtered_resps"] for line in one["short"]}) > 1
