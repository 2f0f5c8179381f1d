"""Trainings that are scored on tasks: with dropout, stopped and resumed, and in two processes."""

import signal
from pathlib import Path

import pytest

from fvl_lightning.evaluation.batched_answers import Asking
from fvl_lightning.evaluation.task_rows.questions import read_questions
from fvl_lightning.evaluation.tasks.lookup import find_task
from fvl_lightning.evaluation.tasks.score import score_task
from fvl_lightning.evaluation.validation_rows import on_validation
from fvl_lightning.modeling.build import load_model
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.tracking.metrics_log import read_metrics
from tests.conftest import ROOT, TINY_DATA, Fork, Run
from tests.integration.runs import FINETUNE, UNTRACKED, StopAt, assert_same_run
from tests.integration.tiny_tasks import write_tasks

SIX_STEPS = (
    "train", *FINETUNE, *TINY_DATA, UNTRACKED, "trainer.max_steps=6", "trainer.batch_size=4", "trainer.log_every=1",
    "trainer.validate_every=3", "trainer.checkpoint_every=5", "optimizer.warmup_steps=3",
)  # fmt: skip
EVALUATED = "trainer.evaluate={tasks: [colours.yaml, words.yaml], every: 4}"
SCORES = ("evaluation/colours/macro", "evaluation/words/overall")


def weights_of(run: RunFolder) -> str:
    return str(run.info["files"]["model.safetensors"])


@pytest.mark.slow
def test_a_stopped_training_makes_its_evaluation_once(workspace: Path, fvl_here: Run, stop_at: StopAt) -> None:
    write_tasks(workspace)
    for name, words in {"plain": (), "scored": (EVALUATED,)}.items():
        done = fvl_here(workspace, *SIX_STEPS, f"name={name}", *words)
        assert done.returncode == 0, done.stderr
    plain, scored = (RunFolder(workspace / "runs" / name) for name in ("plain", "scored"))
    assert weights_of(plain) == weights_of(scored)
    stop_at(4, signal.SIGTERM)
    stopped = fvl_here(workspace, *SIX_STEPS, "name=job", EVALUATED)
    assert stopped.returncode == 75, stopped.stderr
    job = RunFolder(workspace / "runs" / "job")
    assert not job.curve(SCORES[0]), "the evaluation of step 4 has not been made"
    resumed = fvl_here(workspace, *SIX_STEPS, "name=job", EVALUATED, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(scored, job)
    for name in SCORES:
        assert [line["step"] for line in read_metrics(job.metrics) if name in line] == [4, 6]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_answer_the_questions(
    strategy: str, workspace: Path, fork: Fork, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tasks(workspace)
    program = str(ROOT / "fvl_lightning" / "__main__.py")
    for name, words in {"plain": (), "scored": (EVALUATED,)}.items():
        options = (*SIX_STEPS, f"name={name}", f"trainer.strategy={strategy}", "trainer.devices=2", *words)
        codes = fork(workspace, f"out-{name}", *[(program, *options)] * 2)
        assert codes == [0, 0], (workspace / f"out-{name}" / "rank0.txt").read_text(encoding="utf-8")
    plain, scored = (RunFolder(workspace / "runs" / name) for name in ("plain", "scored"))
    assert weights_of(plain) == weights_of(scored)
    monkeypatch.chdir(workspace)
    task = on_validation(find_task("words.yaml"))
    result = score_task(load_model(scored.model), task, read_questions(task), Asking())
    assert [step for step, _ in scored.curve(SCORES[1])] == [4, 6]
    assert scored.curve(SCORES[1])[-1][1] == result.scores.overall
    options = (*options, "name=wrong", "trainer.keep_best=true", "trainer.keep_best_by=evaluation/word/overall")
    wrong = fork(workspace, "out-wrong", *[(program, *options)] * 2)
    said = (workspace / "out-wrong" / "rank0.txt").read_text(encoding="utf-8")
    assert wrong[0] == 2
    assert "unknown score 'evaluation/word/overall'" in said
