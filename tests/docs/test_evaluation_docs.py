"""docs/evaluation.md: its table is the catalog, and its task of one's own is read as it says."""

import re
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from yaml import safe_load

from datamodules.hub.address import PREFIX
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.evaluation.report.report import FILES
from fvl_lightning.evaluation.task_rows.questions import read_questions
from fvl_lightning.evaluation.tasks.checks import metric_choice
from fvl_lightning.evaluation.tasks.cleaning import STEPS
from fvl_lightning.evaluation.tasks.config import TaskConfig, TaskFields
from fvl_lightning.evaluation.tasks.lookup import find_task, suite
from fvl_lightning.evaluation.tasks.request import OUTPUT
from fvl_lightning.evaluation.while_training import open_evaluation
from fvl_lightning.runs.extensions import opened_evaluation
from fvl_lightning.training.distributed.process_group import Ranks
from tests.conftest import ROOT, TINY, Run, furnish
from tests.docs.readme import blocks, commands
from tests.evaluation.tasks.layouts import LAYOUTS, png
from tests.integration.test_comparison import Here

FILE = ROOT / "docs" / "evaluation.md"
PAGE = FILE.read_text(encoding="utf-8")
ROWS = 12


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


def test_a_task_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can be scored during a training, with the settings of the page."""
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
    monkeypatch.chdir(tmp_path)
    (tmp_path / "signs_validation.jsonl").write_text(rows.splitlines()[0], encoding="utf-8")
    (held_out,) = (block for block in blocks("yaml", FILE) if block.startswith("# held_out.yaml"))
    (tmp_path / "held_out.yaml").write_text(held_out, encoding="utf-8")
    (settings,) = (block for block in blocks("yaml", FILE) if "evaluate: {tasks: [held_out.yaml]" in block)
    trainer = safe_load(settings)["trainer"]
    config = ExperimentConfig().with_overrides(
        "stage=finetune", {f"trainer.{key}": value for key, value in trainer.items()}
    )
    evaluation = opened_evaluation(config, open_evaluation, Ranks())
    assert evaluation is not None
    assert trainer["keep_best_by"] in evaluation.higher_is_better
    assert evaluation.counts == {"signs": 1}


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


def write_textvqa(folder: Path) -> None:
    """Writes rows in the layout of TextVQA; people agree less and less on their answers."""
    columns = LAYOUTS["textvqa"].columns
    colours, rows = ("red", "blue", "green"), []
    for number in range(ROWS):
        colour = colours[number % 3]
        values = ["a", number, "what IS it?", [], {"bytes": png(colour), "path": None}, 3]
        rows.append(dict(zip(columns, [*values, [colour] * (10 - number % 9) + ["other"] * (number % 9), "val", []],
                             strict=True)))  # fmt: skip
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(columns)), folder / "validation-00000-of-00001.parquet")


@pytest.mark.slow
def test_five_commands_lead_from_a_benchmark_to_a_verdict(
    tmp_path: Path, tiny_data: Path, fvl_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With files of the benchmark's layout, as the page says: the shipped task is the base of `mine.yaml`."""
    folder = furnish(tmp_path, tiny_data)
    write_textvqa(folder / "textvqa")
    named = {match[1]: block for block in blocks("yaml", FILE) if (match := re.match(r"# (\w+\.yaml)\n", block))}
    (folder / "mine.yaml").write_text(named["mine.yaml"], encoding="utf-8")
    compared = named["on_textvqa.yaml"].replace("[textvqa]", "[mine.yaml]").replace("tasks/textvqa", "tasks/mine")
    (folder / "on_textvqa.yaml").write_text(compared, encoding="utf-8")
    for arm in ("concat", "gated"):
        words = ("train", "experiments/demo/finetune.yaml", *TINY, f"fusion={arm}", f"output=runs/demo/{arm}")
        assert fvl_here(folder, *words).returncode == 0
    monkeypatch.setattr("fvl_lightning.comparison.run.LocalLauncher", lambda jobs: Here())
    tiny = (f"set=[{', '.join(TINY)}, trainer.max_steps=1]", "evaluate.limit=8", "tracking.enabled=false",
            "stages=[experiments/demo/finetune.yaml]")  # fmt: skip
    five = commands(FILE)[:5]
    assert [words[1] for words in five] == ["describe", "evaluate", "evaluate", "compare", "compare"]
    for words in five:
        local = ["mine.yaml" if word == "textvqa" and words[1] == "evaluate" else word for word in words[1:]]
        done = fvl_here(folder, *local, *(tiny if words[1] == "compare" else ()))
        assert done.returncode == 0, f"{words}: {done.stderr}"
    report = (folder / "runs" / "on_textvqa" / "report.md").read_text(encoding="utf-8")
    assert "**What 5 seeds show** (TextVQA, VQA accuracy over all questions, against concat" in report
    assert re.search(r"^> - .*\bgated\b", report, re.MULTILINE), "a verdict in a sentence"
