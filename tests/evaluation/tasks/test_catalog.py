"""Every task of the catalog reads rows in the layout of its public data, and asks what lmms-eval asks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.evaluation.task_rows.questions import read_questions
from fvl_lightning.evaluation.tasks.checks import metric_choice
from fvl_lightning.evaluation.tasks.lookup import find_task, suite, suite_names, task_names
from tests.conftest import Run
from tests.evaluation.tasks.layouts import LAYOUTS, Asked


def text_of(message: Mapping[str, Any]) -> str:
    return "".join(part.get("text", "<image>") for part in message["content"])


def test_every_task_has_a_layout() -> None:
    assert sorted(LAYOUTS) == task_names()


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_task_reads_the_layout_of_its_data(tmp_path: Path, name: str) -> None:
    layout = LAYOUTS[name]
    columns = zip(*layout.rows, strict=True)
    arrays = [pa.array(column, kind) for column, kind in zip(columns, layout.columns.values(), strict=True)]
    pq.write_table(pa.table(dict(zip(layout.columns, arrays, strict=True))), tmp_path / "rows.parquet")
    overrides = [f"data.files={tmp_path}/*.parquet"]
    if layout.images:
        (tmp_path / "images").mkdir()
        pq.write_table(pa.table(layout.images), tmp_path / "images" / "images.parquet")
        overrides.append(f"data.images={tmp_path}/images/images.parquet")
    found = read_questions(find_task(name, overrides))
    for prompt in find_task(name).paraphrases:
        others = [text_of(question.messages[-1]) for question in found.with_prompt(prompt).questions]
        assert len(others) == len(found.questions)
        assert not {text_of(question.messages[-1]) for question in found.questions} & set(others)
    leading = [text_of(question.messages[-1]) for question in found.questions]
    if name != "mmmu":  # whose texts say where the images are
        assert all(text.startswith("<image>") for text in leading)
        leading = [text.replace("<image>", "", 1) for text in leading]
    asked = [
        Asked(text, question.reference.answers, question.kind, question.images, question.reference.choices,
              question.reference.group)
        for text, question in zip(leading, found.questions, strict=True)
    ]  # fmt: skip
    grouped = find_task(name).fields.group
    expected = [Asked(**{**vars(one), "group": one.group if grouped else got.group})
                for one, got in zip(layout.asked, asked, strict=True)]  # fmt: skip
    assert asked == expected


def test_every_task_names_a_metric_and_a_number_of_it() -> None:
    for name in task_names():
        task = find_task(name)
        assert task.primary in metric_choice(task).component.averages, name
        assert task.source.startswith("https://"), name
        assert task.lmms_eval, name
        assert bool(task.published) or bool(task.note), name


def test_tasks_are_listed_and_described(tmp_path: Path, fvl_here: Run) -> None:
    listed = fvl_here(tmp_path, "list", "task").stdout
    assert all(f" {name} " in listed for name in task_names())
    assert "hub:lmms-lab-encoder/textvqa" in fvl_here(tmp_path, "describe", "task", "textvqa").stdout
    assert "paraphrases" in fvl_here(tmp_path, "describe", "task").stdout
    assert "answers_as" in fvl_here(tmp_path, "describe", "task.fields").stdout
    wrong = fvl_here(tmp_path, "describe", "task", "textvga")
    assert (wrong.returncode, "did you mean 'textvqa'?" in wrong.stderr) == (2, True)


def test_the_suite_of_the_paper() -> None:
    assert suite_names() == ["florence_vl"]
    assert sorted([*suite("florence_vl"), "mmvet"]) == task_names(), "all but the one that needs a judge"
    with pytest.raises(ConfigError, match="unknown suite 'florence', allowed: florence_vl; did you mean"):
        suite("florence")


def test_names_and_paths(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown task 'textvga', expected a YAML file or one of .*mean 'textvqa'"):
        find_task("textvga")
    with pytest.raises(ConfigError, match=r"no configuration file .*own\.yaml"):
        find_task(tmp_path / "own.yaml")
    (tmp_path / "base.yaml").write_text("title: Base\ndata: {files: rows.jsonl, images: ../images}\nprompt: '{q'\n")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "own.yaml").write_text("title: Own\nbase: ../base.yaml\nprompt: '{q}'\n")
    task = find_task(own := tmp_path / "own" / "own.yaml", ["answer.tokens=8"])
    assert (task.name, task.title, task.answer.tokens) == ("own", "Own", 8)
    assert Path(task.data.files[0]).resolve() == tmp_path / "rows.jsonl"
    assert Path(task.data.images).resolve() == tmp_path.parent / "images"
    assert find_task(tmp_path / "own" / "own.yaml", ["data.files=a.jsonl"]).data.files == ["a.jsonl"]
    with pytest.raises(ConfigError, match=r"base\.yaml: prompt: a { is not closed"):
        find_task(tmp_path / "base.yaml")
    with pytest.raises(ConfigError, match=r"metric\.first_words on the command line: unknown key.*'first_word'"):
        find_task("pope", ["metric.first_words=true"])
    with pytest.raises(ConfigError, match=r"unknown metric 'popes'.*did you mean 'pope'"):
        find_task("pope", ["metric.name=popes"])
    assert find_task("pope", ["metric.name=popes"], plugins=["own.py"]).metric["name"] == "popes"
    own.write_text("base: ../named.yaml\ntitle: Own\nmetric: anls\n")
    (tmp_path / "named.yaml").write_text("title: T\ndata: {files: a.jsonl}\nmetric: {name: pope, first_word: true}\n")
    assert find_task(own).metric == {"name": "anls"}, "another metric has none of the options"
    own.write_text("base: textvqa\ndata: {files: mine/*.parquet}\n")
    task = find_task(own)
    assert (task.name, task.prompt, task.published) == ("own", (of := find_task("textvqa")).prompt, of.published)
    assert task.data.files == [str(own.parent / "mine" / "*.parquet")], "relative to the file that names them"
    own.write_text("base: ../named.yaml\ntitle: Own\nmetric: anl\n")
    with pytest.raises(ConfigError, match=r"metric in .*own\.yaml: unknown metric 'anl'.*did you mean 'anls'"):
        find_task(own)
    with pytest.raises(ConfigError, match=r"answer\.tokens on the command line must be at least 1"):
        find_task("textvqa", ["answer.tokens=0"])
