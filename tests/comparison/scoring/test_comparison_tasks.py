"""The tasks that a comparison file names: their scores, their questions, and what is refused before anything starts."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from fvl_lightning.comparison.cell import Cell
from fvl_lightning.comparison.config import ComparisonConfig, EvaluateConfig
from fvl_lightning.comparison.result_files.cell import CellSpec
from fvl_lightning.comparison.result_files.tasks import TaskSpec
from fvl_lightning.comparison.scoring.task_answers import open_cell_tasks
from fvl_lightning.comparison.scoring.tasks import ask_tasks, named_tasks, resolve_metric
from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.errors import ConfigError, DataError, UserError
from fvl_lightning.training.distributed.process_group import Ranks
from tests.integration.tiny_tasks import TASKS, write_tasks

FILES = [f"{name}.yaml" for name in TASKS]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tasks(tmp_path)
    return tmp_path


def loaded(folder: Path, metric: str = "accuracy/macro", **evaluate: Any) -> tuple[ComparisonConfig, Path]:
    """A comparison file with these tasks; its experiments do not matter here."""
    path = folder / "mine.yaml"
    values = {"stages": ["none.yaml"], "axes": {"fusion": ["concat", "gated"]}, "metric": metric}
    path.write_text(yaml.safe_dump(values | {"evaluate": {"tasks": FILES, **evaluate}}), encoding="utf-8")
    return load_config(ComparisonConfig, path), path


def metric_of(folder: Path, metric: str, **evaluate: Any) -> str:
    config, path = loaded(folder, metric, **evaluate)
    return resolve_metric(config, path, named_tasks(config, path))


def test_scores_have_full_names(folder: Path) -> None:
    assert metric_of(folder, "accuracy/macro") == "accuracy/macro"
    assert metric_of(folder, "tasks/words") == "tasks/words/macro"
    assert metric_of(folder, "tasks/words/overall") == "tasks/words/overall"
    assert metric_of(folder, "macro/both", macro={"both": list(TASKS)}) == "macro/both"


@pytest.mark.parametrize(
    ("metric", "evaluate", "said"),
    [
        ("tasks/word", {}, "metric in .*mine.yaml: unknown task 'word', allowed: colours, words; did you mean 'words'"),
        ("tasks/words/macr", {}, "unknown score 'tasks/words/macr', .*did you mean 'tasks/words/macro'"),
        ("macro/bth", {"macro": {"both": list(TASKS)}}, "unknown average over tasks 'bth', .*did you mean 'both'"),
        ("macro/both", {"macro": {"both": ["words", "wrds"]}}, "macro.both .*unknown task .wrds."),
        ("macro/both", {"macro": {"both": ["words"]}}, "at least two tasks, each once: .'words'."),
        ("acuracy/macro", {}, "did you mean 'accuracy'"),
        ("tasks/words", {"tasks": ["words.yaml", "words.yaml"]}, "two tasks are named words"),
        ("tasks/words", {"tasks": ["wrds"]}, "evaluate.tasks in .*unknown task 'wrds'"),
        ("tasks/words", {"tasks": ["none.yaml"]}, "none.yaml"),
    ],
)
def test_mistakes_are_one_sentence(folder: Path, metric: str, evaluate: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        metric_of(folder, metric, **evaluate)
    assert "\n" not in str(error.value)


def test_scores_of_tasks_need_tasks_and_a_score_to_tune_by(folder: Path) -> None:
    config, path = loaded(folder, "tasks/words")
    tasks = named_tasks(config, path)
    config.tune = type("Tuned", (), {"metric": None})()  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"name the score to choose by as tune\.metric, such as accuracy/macro"):
        resolve_metric(config, path, tasks)
    config.tune, config.evaluate = None, None
    with pytest.raises(ConfigError, match="tasks/words is a score of tasks, and `evaluate` names no tasks"):
        resolve_metric(config, path, {})


def test_averages_need_a_common_scale(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, path = loaded(folder, macro={"both": list(TASKS)})
    tasks = named_tasks(config, path)
    other = type("Other", (tasks["words"].component,), {"bounds": (0.0, 10.0)})
    monkeypatch.setattr(type(tasks["words"]), "component", property(lambda task: other if task.name == "words" else
                        tasks_component(task)))  # fmt: skip
    with pytest.raises(ConfigError, match=r"no common scale .0 to 1, higher is better; 0 to 10, higher is better"):
        resolve_metric(config, path, tasks)


def tasks_component(task: Any) -> Any:
    from fvl_lightning.core import registry

    return registry.component("metric", task.metric)


def test_all_cells_are_asked_the_same_questions(folder: Path) -> None:
    config, path = loaded(folder)
    tasks = named_tasks(config, path)
    some, everything = ask_tasks(tasks, 8), ask_tasks(tasks, None)
    assert [len(some.questions[name].questions) for name in TASKS] == [8, 8]
    assert some.specs["words"].identity != everything.specs["words"].identity
    assert some.specs == ask_tasks(tasks, 8).specs
    entry = everything.evaluation(EvaluateConfig(tasks=FILES), test_split=True).tasks["words"]
    assert (entry.questions, entry.clusters) == (12, 4), "equal pictures are one"
    with pytest.raises(ConfigError, match=r"13 questions of each task, and colours has 12; take at most 12; .*words"):
        ask_tasks(tasks, 13)
    opened = open_cell_tasks(CellSpec(stages=[], tasks=dict(some.specs)), Ranks())
    assert [question.id for question in opened["words"].questions.questions] == [
        question.id for question in some.questions["words"].questions
    ]
    rows = folder / "rows.jsonl"
    rows.write_text(rows.read_text(encoding="utf-8").replace("what colour", "which colour"), encoding="utf-8")
    with pytest.raises(DataError, match=r"task colours .* has changed since the comparison was started"):
        open_cell_tasks(CellSpec(stages=[], tasks=dict(some.specs)), Ranks())


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"question"', '"qestion"', "task colours: fields.question: .*no field 'question'.*did you mean 'qestion'"),
        ('"answer": "red"', '"answer": ""', "task colours: .*no reference|task colours: .*answer"),
        ("0.png", "none.png", "task colours: .*none.png"),
    ],
)
def test_rows_that_cannot_be_asked_are_named(folder: Path, old: str, new: str, said: str) -> None:
    config, path = loaded(folder)
    rows = folder / "rows.jsonl"
    rows.write_text(rows.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    with pytest.raises(UserError, match=said):
        ask_tasks(named_tasks(config, path), None)


def test_a_key_knows_what_is_asked_and_not_where_it_lies(tmp_path: Path) -> None:
    def key(**changes: Any) -> str:
        return Cell("concat", 0, tmp_path / "cell", CellSpec(stages=[], **changes)).key

    def task(**changes: Any) -> dict[str, TaskSpec]:
        values: dict[str, Any] = {"task": "words.yaml", "identity": "ab", "limit": 8, "asked": {"prompt": "?"}}
        return {"words": TaskSpec(**(values | changes))}

    assert "tasks" not in CellSpec(stages=[]).plain()
    assert "test_questions" not in CellSpec(stages=[]).plain()
    without, asked = key(), key(tasks=task())
    assert without == key(macro={"both": ["a", "b"]}) != asked
    assert asked == key(tasks=task(task="elsewhere/words.yaml"))
    assert len({asked, key(tasks=task(identity="cd")), key(tasks=task(asked={"prompt": "!"}))}) == 3
    assert key(test_questions=False) != without


def test_a_comparison_without_tasks_is_recorded_as_before() -> None:
    plain = ComparisonConfig(stages=["a.yaml"]).recorded()
    assert "evaluate" not in plain
    assert plain["tune"] is None
