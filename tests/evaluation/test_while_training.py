"""`trainer.evaluate` from the command line: the validation rows of a task, in a run's log and best weights."""

import json
from pathlib import Path
from typing import Any

import pytest

from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.doctor.resources import check_evaluation
from fvl_lightning.evaluation.batched_answers import Asking
from fvl_lightning.evaluation.task_rows.questions import read_questions
from fvl_lightning.evaluation.tasks.lookup import find_task
from fvl_lightning.evaluation.tasks.score import score_task
from fvl_lightning.evaluation.validation_rows import on_validation
from fvl_lightning.evaluation.while_training import open_evaluation
from fvl_lightning.modeling.build import load_model
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.training.checkpointing.last_and_previous import BEST, read_checkpoint
from fvl_lightning.training.distributed.process_group import Ranks
from tests.conftest import TINY, Run, furnish

TASK = """title: Drawings
data: {files: data/demo/*/test-*.tar}
validation: {files: data/demo/*/validation-*.tar}
metric: {name: accuracy}
"""
SCORE = "evaluation/drawings/overall"
EVALUATED = ("trainer.evaluate={tasks: [drawings.yaml], every: 2, limit: 12}", "trainer.keep_best=true",
             f"trainer.keep_best_by={SCORE}")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, fvl_here: Run) -> Path:
    """A working folder with a task, the run `scored` that evaluates on it, and `plain` that does not."""
    made = furnish(tmp_path_factory.mktemp("scored"), tiny_data)
    (made / "drawings.yaml").write_text(TASK)
    for name, words in {"scored": EVALUATED, "plain": ()}.items():
        done = fvl_here(made, "train", "experiments/demo/finetune.yaml", *TINY, f"name={name}", *words)
        assert done.returncode == 0, done.stderr
    return made


def test_the_scores_are_logged_and_the_weights_are_those_of_a_run_without(folder: Path) -> None:
    scored, plain = (RunFolder.open(str(folder / "runs" / name)) for name in ("scored", "plain"))
    curves = scored.curves()
    assert [step for step, _ in curves[SCORE]] == [2, 3]
    assert {name for name in curves if name.startswith("evaluation/")} > {SCORE, "evaluation/drawings/macro"}
    assert set(curves) - {name for name in curves if name.startswith("evaluation/")} == set(plain.curves())
    assert scored.info["files"]["model.safetensors"] == plain.info["files"]["model.safetensors"]
    best = read_checkpoint(scored.checkpoints / BEST)
    assert best["evaluation"][SCORE] == max(score for _, score in curves[SCORE])


def test_the_last_score_is_that_of_the_saved_model_on_the_validation_rows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    task = on_validation(find_task("drawings.yaml"))
    questions = read_questions(task, 12)
    assert len(questions.questions) == 12
    result = score_task(load_model(Path("runs/scored/model")), task, questions, Asking())
    curves = RunFolder.open("runs/scored").curves()
    assert curves[SCORE][-1] == (3, result.scores.overall)
    assert curves["evaluation/drawings/macro"][-1] == (3, result.scores.macro)


def test_other_questions_refuse_a_resume(folder: Path, fvl_here: Run) -> None:
    words = ("train", "experiments/demo/finetune.yaml", *TINY, "name=scored", *EVALUATED)
    run = RunFolder.open(str(folder / "runs" / "scored"))
    inputs = run.info["inputs"]
    run.record(status="interrupted", inputs={**inputs, "the questions of the task drawings": "of another day"})
    done = fvl_here(folder, *words, "--resume")
    run.record(status="finished", inputs=inputs)
    assert done.returncode == 2
    assert "the questions of the task drawings changed; put it back, or start a new run" in done.stderr
    text = (folder / "drawings.yaml").read_text()
    (folder / "drawings.yaml").write_text(text + "answer: {tokens: 3}\n")
    run.record(status="interrupted")
    done = fvl_here(folder, *words, "--resume")
    (folder / "drawings.yaml").write_text(text)
    run.record(status="finished")
    assert done.returncode == 2
    assert "the file of the task drawings.yaml" in done.stderr


MISTAKES: list[tuple[dict[str, str], str]] = [
    ({"validation: {files: data/demo/*/validation-*.tar}\n": ""}, "task drawings has no validation rows; "),
    ({"validation: {files: data/demo/*/validation-*.tar}": "validation: {files: data/demo/*/test-*.tar}"},
     r"validation.files: .*/test-\d+.tar is of the split test; name rows that no result is reported on"),
    ({"data/demo/*/test-*.tar": "data/demo/*/validation-*.tar"}, r"validation-\d+.tar is in data and in validation"),
    ({"validation: {files: data/demo/*/validation-*.tar}": "validation: {files: 'hub:a/b:c/test'}"}, "is the split"),
    ({"validation: {files: data/demo/*/validation-*.tar}": "validation: {files: 'hub:a/b'}"}, "names no split; write"),
    ({"validation: {files: data/demo/*/validation-*.tar}": "validation: {files: none.jsonl}"}, "drawings: no file "),
    ({"title: Drawings\n": "title: Drawings\nprimary: f1\n"}, "primary of task drawings: unknown number 'f1', all"),
    ({"validation-*.tar}": "validation-*.tar, where: {kind: none}}"}, r"has no rows with \{'kind': 'none'\}"),
    ({"validation-*.tar}": "validation-*.tar, where: {kin: none}}"}, "validation.where"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_a_task_that_a_training_must_not_see_or_cannot_ask(
    folder: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], message: str
) -> None:
    monkeypatch.chdir(folder)
    text = (folder / "drawings.yaml").read_text()
    for before, after in changes.items():
        assert before in text
        text = text.replace(before, after)
    (folder / "wrong").mkdir(exist_ok=True)
    (folder / "wrong" / "drawings.yaml").write_text(text.replace("data/demo", str(folder / "data" / "demo")))
    with pytest.raises((ConfigError, DataError), match=rf"^trainer\.evaluate\.tasks: .*{message}"):
        open_evaluation(experiment("wrong/drawings.yaml"), Ranks())


def experiment(task: str, **changes: Any) -> ExperimentConfig:
    """A checked experiment that evaluates on a task."""
    words = [
        f"trainer.evaluate={{tasks: [{task}]}}",
        "stage=finetune",
        *(f"{key}={value}" for key, value in changes.items()),
    ]
    return ExperimentConfig().with_overrides(*words)


def test_rows_of_one_file_are_kept_apart_by_a_field(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    rows = [{"question": f"is it {n}?", "answer": "yes", "split": ["test", "validation"][n % 2]} for n in range(6)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = "title: R\ndata: {files: rows.jsonl, where: {split: test}}\nfields: {images: []}\n"
    (folder / "apart.yaml").write_text(text + "validation: {files: rows.jsonl, where: {split: validation}}\n")
    evaluation = open_evaluation(experiment("apart.yaml"), Ranks())
    assert evaluation.primary == ["evaluation/apart/macro"]
    assert evaluation.higher_is_better == {"evaluation/apart/macro": True, "evaluation/apart/overall": True,
                                           "evaluation/apart/all": True}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": "encoder_pretrain"}, "stage encoder_pretrain trains an encoder, which answers no questions"),
        ({"trainer.strategy": "fsdp", "trainer.cpu_offload": "true"}, "with cpu_offload a sharded model does not gen"),
    ],
)
def test_a_training_that_cannot_answer(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^trainer.evaluate: {message}"):
        open_evaluation(experiment("drawings.yaml", **changes), Ranks())


def test_the_doctor_counts_the_answers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (finding,) = check_evaluation(experiment("drawings.yaml", **{"trainer.max_steps": "250"}), open_evaluation)
    asked = len(read_questions(on_validation(find_task("drawings.yaml"))).questions)
    wanted = f"3 evaluations, each with the questions {asked} of drawings: {3 * asked} answers are generated"
    assert (finding.check, finding.status, finding.message) == ("evaluation", "ok", wanted)
    assert check_evaluation(ExperimentConfig(), open_evaluation) == []


def test_from_the_command_line_a_mistake_is_one_sentence(folder: Path, fvl_here: Run) -> None:
    words = ("trainer.evaluate={tasks: [drawings.yaml], every: 2}", "trainer.keep_best=true",
             "trainer.keep_best_by=evaluation/drawings/overal")  # fmt: skip
    done = fvl_here(folder, "train", "experiments/demo/finetune.yaml", *TINY, "name=wrong", *words)
    assert done.returncode == 2
    assert "trainer.keep_best_by: unknown score 'evaluation/drawings/overal'" in done.stderr
    assert "did you mean 'evaluation/drawings/overall'" in done.stderr
    assert not (folder / "runs" / "wrong").exists()
