"""experiments/easy_vqa, on a made-up wheel with the layout of the one on PyPI."""

import io
import json
import runpy
import shutil
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from PIL import Image, ImageColor

from datamodules.building.config import BuildConfig
from datamodules.encoding.messages import check_messages, image_parts
from datamodules.sources.base import Row
from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.comparison.plan import experiments, plan_alike
from fvl_lightning.comparison.scoring.tasks import ask_tasks, named_tasks, resolve_metric
from fvl_lightning.core.config.loading import load_config
from fvl_lightning.evaluation.task_rows.questions import read_questions
from fvl_lightning.evaluation.tasks.lookup import find_task
from fvl_lightning.evaluation.tasks.score import judged
from tests.conftest import ROOT
from tests.datamodules.sources.reading import read

HERE = Path("experiments/easy_vqa")
COLOURS = ("teal", "brown")
ASKED = {
    "train": [
        ["what is the teal shape?", "circle", 0],
        ["what shape is in the image?", "circle", 0],
        ["what color is the shape?", "teal", 0],
        ["is there not a brown shape?", "yes", 0],
        ["is there a brown shape?", "no", 0],
        ["is a circle present?", "yes", 0],
        ["does the image not contain a triangle?", "no", 1],
    ],
    "test": [
        ["what is the color of the circle?", "teal", 0],
        ["is no teal shape present?", "no", 0],
        ["does the image contain a circle?", "yes", 0],
        ["what shape does the image contain?", "triangle", 1],
        ["is there a circle in the image?", "no", 1],
    ],
}


def prepare(wheel: Path, out: Path) -> None:
    runpy.run_path(str(ROOT / HERE / "prepare.py"))["main"](wheel, out)


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """The file that pip downloads, with two pictures in each split."""
    file = tmp_path / "easy_vqa-1.0-py3-none-any.whl"
    with ZipFile(file, "w") as archive:
        for split, questions in ASKED.items():
            archive.writestr(f"easy_vqa/data/{split}/questions.json", json.dumps(questions))
            for number, colour in enumerate(COLOURS):
                content = io.BytesIO()
                Image.new("RGB", (64, 64), colour).save(content, "PNG")
                archive.writestr(f"easy_vqa/data/{split}/images/{number}.png", content.getvalue())
    return file


@pytest.fixture
def prepared(workspace: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder as after the first two commands of the page."""
    (workspace / "experiments").unlink()
    for name in ("demo", "easy_vqa"):
        shutil.copytree(ROOT / "experiments" / name, workspace / "experiments" / name)
    monkeypatch.chdir(workspace)
    prepare(wheel, Path("downloads/easy_vqa"))
    return workspace


def test_it_trains_on_one_question_of_each_kind_of_a_picture(prepared: Path) -> None:
    config = load_config(BuildConfig, HERE / "shards.yaml")
    rows = [row for row in read(config.source.component(config.source.config)) if isinstance(row, Row)]
    assert [row.record["id"] for row in rows] == ["0-absence", "0-colour", "0-presence", "0-shape", "1-absence"]
    answers = {tuple(question) for question in ASKED["train"]}
    for row in rows:
        assert row.record["kinds"] == [row.record["id"][2:]]
        question, answer = row.record["messages"]
        assert check_messages([question, answer]) == ""
        assert image_parts([question]) == len(row.images) == 1
        picture = int(row.record["id"][0])
        text = question["content"][1]["text"].strip()
        assert (text, answer["content"], picture) in answers
        colour = Image.open(io.BytesIO(row.images[0])).getpixel((0, 0))
        assert colour == ImageColor.getrgb(COLOURS[picture])


def test_the_same_questions_are_drawn_again(prepared: Path, wheel: Path) -> None:
    before = Path("downloads/easy_vqa/train.json").read_bytes()
    prepare(wheel, Path("downloads/easy_vqa"))
    assert Path("downloads/easy_vqa/train.json").read_bytes() == before


def test_the_task_asks_all_test_questions(prepared: Path) -> None:
    task = find_task(HERE / "task.yaml")
    questions = read_questions(task)
    assert [question.kind for question in questions.questions] == ["colour", "absence", "presence", "shape", "presence"]
    assert len({question.cluster for question in questions.questions}) == 2, "questions about one picture"
    scores = judged(task, questions, ["Teal.", "yes", "yes", " triangle", "yes"]).scores
    assert scores.by_kind == {"colour": 1, "absence": 0, "presence": 0.5, "shape": 1}
    assert (task.primary, scores.macro, scores.overall) == ("macro", 0.625, 0.6)


def test_the_comparison_trains_its_arms_on_one_encoder(prepared: Path) -> None:
    path = HERE / "fusions.yaml"
    config = load_config(ComparisonConfig, path)
    tasks = named_tasks(config, path)
    assert resolve_metric(config, path, tasks) == config.metric == "tasks/easy_vqa/macro"
    assert config.evaluate is not None
    assert config.evaluate.limit == 2000
    assert len(ask_tasks(tasks, 4).questions["easy_vqa"].questions) == 4
    config.seeds = config.seeds[:1]  # the others differ in nothing but their number
    plans = experiments(config, path, Path("runs/easy_vqa"))
    plan_alike([plan.arms for plan in plans.values()], config.lineage)
    encoder = "runs/demo/encoder_pretrain"
    stages: list[Any] = [stage for plan in plans.values() for (stage,) in plan.arms.values()]
    assert {(stage.stage.name, *stage.init_from) for stage in stages} == {("finetune", encoder)}
    assert all(plan.encoder is None for plan in plans.values())


def test_another_file_is_refused_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.whl"
    with ZipFile(other, "w") as archive:
        archive.writestr("other/__init__.py", "")
    script = str(ROOT / HERE / "prepare.py")
    reasons = {other: "There is no item named", tmp_path / "gone.whl": "No such file", Path(script): "not a zip file"}
    for file, said in reasons.items():
        monkeypatch.setattr("sys.argv", [script, str(file), str(tmp_path / "out")])
        with pytest.raises(SystemExit, match=rf"{file.name} is not the wheel of easy-VQA: .*{said}"):
            runpy.run_path(script, run_name="__main__")
