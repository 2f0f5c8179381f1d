"""kill -9 at random places of a run with workers, packing and a mixture: it ends as if nothing had happened."""

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from fvl_lightning.runs.folder import RunFolder
from tests.conftest import ONE_THREAD, ROOT, Run
from tests.integration.killed import PLACES
from tests.integration.runs import FINETUNE, UNTRACKED, assert_same_run

PROGRAM = Path(__file__).with_name("killed.py")
STEPS = 15
JOB = (
    "train", *FINETUNE, f"trainer.max_steps={STEPS}", "trainer.batch_size=2", "trainer.log_every=1",
    "trainer.validate_every=6", "trainer.checkpoint_every=3", "optimizer.warmup_steps=3",
)  # fmt: skip


def mixture(folder: Path) -> str:
    """The word of a mixture of two views of the demo's pictures, packed, with two workers."""
    shards = min(path.parent for path in folder.glob("data/demo/*/train-*.tar"))
    views = "talks: {root: shards, view: conversation, share: 2}, captions: {root: shards, view: caption, share: 1}"
    (folder / "shards").symlink_to(shards)
    return f"data={{name: shards, datasets: {{{views}}}, packing: best_fit, sequence_length: 160, workers: 2}}"


@pytest.fixture
def job(workspace: Path) -> tuple[str, ...]:
    """The words of a training on a mixture."""
    return *JOB, mixture(workspace)


def kill(folder: Path, place: str, step: int, *words: str) -> None:
    """Starts or goes on with the run, and kills it."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), place, str(step), *words, "--resume-or-start"],
        cwd=folder, env=os.environ | ONE_THREAD | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr


def plan(kills: int, seed: int) -> list[tuple[str, int]]:
    """Places and steps, the steps ascending, so that each kill finds the run where it has come to."""
    draw = random.Random(seed)
    steps = sorted(draw.sample(range(4, STEPS - 1), kills))
    return [(draw.choice(PLACES), step) for step in steps]


def survive(kills: list[tuple[str, int]], job: tuple[str, ...], folder: Path, fvl_here: Run, *words: str) -> RunFolder:
    """The killed run, finished; it must equal the one that nothing stopped."""
    straight = fvl_here(folder, *job, UNTRACKED, "name=straight")
    assert straight.returncode == 0, straight.stderr
    for place, step in kills:
        kill(folder, place, step, *job, *words, "name=killed")
    done = fvl_here(folder, *job, *words, "name=killed", "--resume-or-start")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (folder / "runs").iterdir()} == {"straight", "killed"}
    run = RunFolder(folder / "runs" / "killed")
    assert_same_run(RunFolder(folder / "runs" / "straight"), run)
    assert [step for step, _ in run.curve("train/loss/captions")]
    return run


@pytest.mark.slow
def test_two_kills(workspace: Path, job: tuple[str, ...], fvl_here: Run, empty_store: Path) -> None:
    shutil.copy(empty_store, workspace / "mlflow.db")
    kills = [("after the update", 5), ("between the renames of a save", 10)]
    run = survive(kills, job, workspace, fvl_here, "tracking.experiment=killed")
    client = MlflowClient(tracking_uri=f"sqlite:///{workspace / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("killed")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_id == run.info["mlflow_run_id"]
    assert found.info.status == "FINISHED"
    for name in found.data.metrics:
        stored = sorted(point.step for point in client.get_metric_history(found.info.run_id, name))
        assert stored == [step for step, _ in run.curve(name)], name


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_ten_kills(seed: int, workspace: Path, job: tuple[str, ...], fvl_here: Run) -> None:
    survive(plan(10, seed), job, workspace, fvl_here, UNTRACKED)
