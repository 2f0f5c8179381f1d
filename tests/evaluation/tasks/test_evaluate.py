"""`fvl evaluate --tasks`: generation and multiple choice, several images or none, several models, restarts, ranks."""

import json
import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fvl_lightning import ConfigError, evaluate_tasks
from fvl_lightning.evaluation import batched_answers
from fvl_lightning.evaluation.task_rows.questions import read_questions
from fvl_lightning.evaluation.tasks.evaluate import AskingTasks, evaluate_model
from fvl_lightning.evaluation.tasks.lookup import find_task
from fvl_lightning.evaluation.tasks.run import short_names
from fvl_lightning.modeling.build import LoadedModel, load_model
from tests.conftest import Run
from tests.thread_ranks import on_ranks

COLOURS = ("red", "blue", "green", "yellow")
QUESTIONS = 10


def png(colour: str) -> dict[str, Any]:
    out = BytesIO()
    Image.new("RGB", (20, 12), colour).save(out, "PNG")
    return {"bytes": out.getvalue(), "path": None}


@pytest.fixture(scope="module")
def folder(asked: Path) -> Path:
    """A working folder with a run, its model, and two tasks: short answers, and choices about two images or none."""
    colours = [COLOURS[number % 4] for number in range(QUESTIONS)]
    short = [
        {"id": f"q{number}", "image": png(colour), "question": f"what colour is it?{' now' * number}",
         "answers": [colour, "none"], "topic": ("a", "b")[number % 2]}
        for number, colour in enumerate(colours)
    ]  # fmt: skip
    choice = [
        {"images": [png(colour), png(COLOURS[number % 3])] if number % 3 else [], "question": "which one is it?",
         "choices": [colour, "seven", "a circle"], "answer": "A"}
        for number, colour in enumerate(colours)
    ]  # fmt: skip
    for name, rows in {"short": short, "choice": choice}.items():
        pq.write_table(pa.Table.from_pylist(rows), asked / f"{name}.parquet", row_group_size=3)
    (asked / "short.yaml").write_text(
        "title: Short answers\ndata: {files: short.parquet}\nmetric: {name: accuracy}\n"
        "fields: {id: id, answers: [answers], kind: topic, slices: [topic]}\nparaphrases: ['Say: {question}']\n"
    )
    (asked / "choice.yaml").write_text(
        "title: Choices\ndata: {files: choice.parquet}\nfields: {images: [images], choices: [choices]}\n"
        "metric: {name: accuracy}\nanswer: {by: likelihood}\n"
    )
    return asked


def scores(folder: Path, output: str) -> dict[str, dict[str, Any]]:
    """{task/file: what the file with its scores holds}."""
    files = sorted((folder / output).glob("*/*.json"))
    return {f"{file.parent.name}/{file.stem}": json.loads(file.read_text()) for file in files}


def lines(folder: Path, output: str) -> dict[str, list[dict[str, Any]]]:
    files = sorted((folder / output).glob("*/*.jsonl"))
    return {f"{file.parent.name}/{file.stem}": [json.loads(line) for line in file.open()] for file in files}


TASKS = ("--tasks", "short.yaml,choice.yaml")


def test_several_models_on_several_tasks(folder: Path, fvl_here: Run) -> None:
    done = fvl_here(folder, "evaluate", "runs/tiny", "model", *TASKS, "--controls", "controls", "--output", "out")
    assert done.returncode == 0, done.stderr
    found = scores(folder, "out")
    wanted = {f"short/{model}{end}" for model in ("model", "runs_tiny") for end in
              ("", "--blind", "--shuffled", "--paraphrase-1")}  # fmt: skip
    wanted |= {f"choice/{model}{end}" for model in ("model", "runs_tiny") for end in ("", "--blind", "--shuffled")}
    assert set(found) == wanted
    assert found["short/model"]["scores"] == found["short/runs_tiny"]["scores"]
    assert found["short/model"]["questions"] == QUESTIONS
    samples = lines(folder, "out")
    assert {name: len(rows) for name, rows in samples.items()} == dict.fromkeys(wanted, QUESTIONS)
    assert "Short answers" in done.stdout or "short" in done.stdout
    assert samples["short/model--paraphrase-1"] != samples["short/model"]


def counted(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[int]:
    """Counts the prompts of every batch; stops in front of the batch with this number."""
    batches: list[int] = []
    original = batched_answers._answer

    def answer(built: Any, prompts: Any, *rest: Any) -> list[str]:
        if len(batches) == stop_after:
            raise KeyboardInterrupt
        batches.append(len(prompts))
        return original(built, prompts, *rest)

    monkeypatch.setattr(batched_answers, "_answer", answer)
    monkeypatch.setattr(batched_answers, "QUESTIONS_PER_BATCH", 6)
    return batches


def test_a_stopped_start_goes_on_and_a_finished_one_asks_nothing(
    folder: Path, fvl_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("evaluate", "model", *TASKS)
    with monkeypatch.context() as patched:
        counted(patched)
        assert fvl_here(folder, *words, "--output", "whole").returncode == 0
    with monkeypatch.context() as patched:
        before = counted(patched, stop_after=3)
        assert fvl_here(folder, *words, "--output", "parts").returncode == 130
    with monkeypatch.context() as patched:
        after = counted(patched)
        assert fvl_here(folder, *words, "--output", "parts").returncode == 0
    assert sum(before) + sum(after) == 2 * QUESTIONS
    assert lines(folder, "parts") == lines(folder, "whole")
    assert not list((folder / "parts").glob("*/.*")), "answers of unfinished tasks"
    with monkeypatch.context() as patched:
        again = counted(patched)
        assert fvl_here(folder, *words, "--output", "parts").returncode == 0
        assert again == []
        assert fvl_here(folder, *words, "--output", "parts", "--limit", "4").returncode == 0
        assert sum(again) == 8, "other questions are asked"


@pytest.fixture(scope="module")
def answers() -> dict[str, Any]:
    """The answers of the first batch size."""
    return {}


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return load_model(folder / "model")


@pytest.mark.parametrize("rows", [1, 16])
def test_ranks_and_batches_make_no_difference(
    folder: Path, loaded: LoadedModel, answers: dict[str, Any], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batched_answers, "QUESTIONS_PER_BATCH", rows)
    tasks = [find_task(folder / f"{name}.yaml") for name in ("short", "choice")]

    def evaluate(output: str) -> Callable[[Any], Any]:
        return lambda ranks: evaluate_model(
            loaded, "model", tasks, AskingTasks(folder / output, read_questions, ranks=ranks)
        )

    one, two = on_ranks(1, evaluate(f"one-{rows}")), on_ranks(2, evaluate(f"two-{rows}"))
    assert two == [one[0], one[0]]
    assert lines(folder, f"two-{rows}") == lines(folder, f"one-{rows}")
    results = [[(sample.prediction, sample.score) for sample in result.samples] for result in one[0]]
    assert answers.setdefault("found", results) == results, "batch 1 = batch 16"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("model", "--tasks", "shrt.yaml"), r"shrt.yaml"),
        (("model", "--tasks", "textvqu"), r"unknown task 'textvqu'"),
        (("model", "--suite", "florence"), r"unknown suite 'florence'"),
        (("model", "--tasks", "short.yaml", "--level", "hard"), r"--level: it is for the data of a run"),
        (("model", "--tasks", "short.yaml,short.yaml"), r"--tasks: one is named twice in short, short"),
        (("model", "--tasks", "short.yaml", "--controls", "blinde"), r"unknown control 'blinde'.*did you mean 'blind'"),
        (("model", "model", "--data", "short.yaml"), r"2 models are given; several are compared on --tasks"),
        (("model", "--output", "x"), r"--output: it is for --tasks or --suite"),
        (("--tasks", "short.yaml"), r"MODEL: name a run or a model folder"),
        (("model", "--tasks", "short.yaml", "--from", "a=none.jsonl"), r"--from: there is no file none.jsonl"),
        (("model", "--tasks", "short.yaml", "--set", "metric.name=acuracy"), r"unknown metric 'acuracy'"),
        (("nowhere", "--tasks", "short.yaml"), r"nowhere"),
        (("model", "--tasks", "short.yaml", "--from", "model=short.yaml"), r"--from: model is the name of a model too"),
        (("runs/tiny", "runs_tiny", "--tasks", "short.yaml"), r"MODEL: runs/tiny and runs_tiny would have files"),
    ],
)
def test_a_mistake_is_one_sentence(folder: Path, fvl_here: Run, words: tuple[str, ...], message: str) -> None:
    done = fvl_here(folder, "evaluate", *words)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in [" ".join(done.stderr.split())] if line]
    assert "Traceback" not in line
    assert re.search(message, line), line


def test_an_image_that_is_cut_is_named_by_its_row(folder: Path, fvl_here: Run) -> None:
    cut = {"bytes": png("red")["bytes"][:-30], "path": None}
    rows = [{"image": image, "question": "what?", "answer": "a"} for image in (png("blue"), cut)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "cut.parquet")
    (folder / "cut.yaml").write_text("title: Cut\ndata: {files: cut.parquet}\n")
    done = fvl_here(folder, "evaluate", "model", "--tasks", "cut.yaml", "--output", "out-cut")
    assert done.returncode == 2
    assert re.search(r"task Cut, cut\.parquet, row 1: its image: [^\n]+\n?$", done.stderr), done.stderr


def test_samples_of_another_model_stand_beside(folder: Path, fvl_here: Run) -> None:
    assert fvl_here(folder, "evaluate", "model", "--tasks", "short.yaml", "--output", "first").returncode == 0
    file = folder / "first" / "short" / "model.jsonl"
    done = fvl_here(folder, "evaluate", "--tasks", "short.yaml", "--from", f"other={file}", "--output", "second")
    assert done.returncode == 0, done.stderr
    assert "other" in done.stdout
    cut = folder / "fewer.jsonl"
    cut.write_text("".join(file.open().readlines()[:-1]))
    done = fvl_here(folder, "evaluate", "model", "--tasks", "short.yaml", "--from", f"other={cut}")
    assert done.returncode == 2
    assert "has 9 questions and lacks 1 of the 10 of the task" in " ".join(done.stderr.split())


def test_from_python(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    found = evaluate_tasks(["model", Path("runs/tiny")], ["short.yaml"], 6, ["blind"], "from_python")
    assert list(found) == ["model", "runs/tiny"]
    assert [(result.task, result.variation, len(result.samples)) for result in found["model"]] == [
        ("short", "", 6), ("short", "blind", 6)
    ]  # fmt: skip
    assert found["model"] == found["runs/tiny"]
    with pytest.raises(ConfigError, match="unknown precision 'bf17'"):
        evaluate_tasks(["model"], ["short.yaml"], precision="bf17")


@pytest.mark.parametrize(
    ("references", "short"),
    [
        (["runs/demo/concat/finetune"], ["concat/finetune"]),
        (["runs/demo/concat/finetune", "runs/demo/gated/finetune"], ["concat", "gated"]),
        (["a", "b/c"], ["a", "b/c"]),
        (["runs/a", "runs/a/b"], ["runs/a", "runs/a/b"]),
    ],
)
def test_short_names(references: list[str], short: list[str]) -> None:
    assert short_names(references) == short
