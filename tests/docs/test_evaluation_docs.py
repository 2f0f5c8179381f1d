"""docs/evaluation.md: its table is the catalog, and its task of one's own is read as it says."""

import re
from pathlib import Path
from typing import get_args

from datamodules.hub.address import PREFIX
from fvl_lightning.evaluation.report.report import FILES
from fvl_lightning.evaluation.task_rows.questions import read_questions
from fvl_lightning.evaluation.tasks.checks import metric_choice
from fvl_lightning.evaluation.tasks.cleaning import STEPS
from fvl_lightning.evaluation.tasks.config import TaskConfig, TaskFields
from fvl_lightning.evaluation.tasks.lookup import find_task, suite
from fvl_lightning.evaluation.tasks.request import OUTPUT
from tests.conftest import ROOT
from tests.evaluation.tasks.layouts import png

PAGE = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")


def row(name: str) -> str:
    """The row of a task in the page's table."""
    task = find_task(name)
    rows = ", ".join(f"`{file.removeprefix(PREFIX)}`" for file in task.data.files)
    number = f"{metric_choice(task).name}/{task.primary}"
    scores = [f"{task.published[size]:g}" if task.published else "" for size in ("Florence-VL 3B", "Florence-VL 8B")]
    cells = [f"`{name}`", f"[{task.title}]({task.source})", rows, number, task.lmms_eval, *scores, task.note]
    return f"| {' | '.join(cells)} |"


def test_the_table_is_the_catalog() -> None:
    expected = [row(name) for name in (*suite("florence_vl"), "mmvet")]
    assert re.findall(r"^\| `\w+` \| \[.+\|$", PAGE, re.MULTILINE) == expected, "\n".join(["", *expected])


def test_a_task_of_ones_own(tmp_path: Path) -> None:
    (rows,) = re.findall(r"```json\n(.+?)```", PAGE, re.DOTALL)
    (yaml,) = re.findall(r"```yaml\n(# signs.yaml.+?)```", PAGE, re.DOTALL)
    (tmp_path / "signs.jsonl").write_text(rows, encoding="utf-8")
    (tmp_path / "signs.yaml").write_text(yaml, encoding="utf-8")
    (tmp_path / "pictures").mkdir()
    for name in ("street.png", "house.png"):
        (tmp_path / "pictures" / name).write_bytes(png("red" if name == "house.png" else "blue"))
    first, second = read_questions(find_task(tmp_path / "signs.yaml")).questions
    assert len(first.reference.answers) == len(second.reference.answers) == 10
    assert (second.slices, first.cluster != second.cluster) == ({"place": "house"}, True)


def test_the_files_that_it_names_are_those_of_a_report() -> None:
    assert all(f"`{name}`" in PAGE for name in FILES if not name.endswith(".png"))
    assert f"`{OUTPUT}/<tasks>`" in PAGE


def test_the_keys_and_steps_that_it_names_are_there() -> None:
    named = re.findall(r"^\| `(data|fields|answer)\.(\w+)` \|", PAGE, re.MULTILINE)
    sections = {key: vars(type(section)).get("__dataclass_fields__") for key, section in vars(_task()).items()}
    assert all(key in sections[section] for section, key in named)
    assert f"the answer that is judged: {', '.join(STEPS)} |" in PAGE
    ways = set(get_args(TaskFields.__dataclass_fields__["answers_as"].type))
    assert ways == {"text", "letter", "number", "option"}


def _task() -> TaskConfig:
    return find_task("textvqa")
