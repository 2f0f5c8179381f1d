"""kill -9 of one rank of two, and of both: all end, and the run goes on as if nothing had happened."""

import random
import shutil
from pathlib import Path

import pytest

from fvl_lightning.core.errors import EXIT_REQUEUE
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.tracking.metrics_log import read_metrics
from tests.conftest import Fork
from tests.integration.killed import PLACES
from tests.integration.runs import UNTRACKED, assert_same_run
from tests.integration.test_killed import JOB, PROGRAM, STEPS, mixture

NEVER = ("never", "0")
KILLED = -9
DROPOUT = "language_model.model.attention_dropout=0.1"
ONE = ("trainer.max_steps=9", "trainer.accelerator=cpu", UNTRACKED)
TWO = (*ONE, "trainer.strategy=ddp", "trainer.devices=2", "trainer.batch_size=1")
Kill = tuple[str, str]
"""Place and step."""


class Ranks:
    """Trainings of one experiment in a folder, on two ranks or on one."""

    def __init__(self, folder: Path, fork: Fork) -> None:
        self.folder, self.fork, self.launches = folder, fork, 0
        self.words = (*JOB, mixture(folder), DROPOUT.replace("0.1", "0.0"))

    def train(self, *words: str, kills: tuple[Kill, ...] = (NEVER, NEVER)) -> list[int]:
        """Exit codes of the ranks."""
        self.launches += 1
        ranks = [(str(PROGRAM), *kill, *self.words, *words) for kill in kills]
        return self.fork(self.folder, f"out{self.launches}", *ranks)

    def said(self, rank: int) -> str:
        """What a rank said the last time."""
        return (self.folder / f"out{self.launches}" / f"rank{rank}.txt").read_text(encoding="utf-8")

    def run(self, name: str) -> RunFolder:
        """The run of this name."""
        return RunFolder(self.folder / "runs" / name)

    def survive(self, kills: list[tuple[Kill, Kill]], *words: str) -> RunFolder:
        """A run that was killed, on the point of its last start."""
        for kill in kills:
            codes = self.train(*words, "name=killed", "--resume-or-start", kills=kill)
            assert codes == [EXIT_REQUEUE if place == "never" else KILLED for place, _ in kill], (kill, self.said(0))
        return self.run("killed")


@pytest.fixture
def ranks(workspace: Path, fork: Fork) -> Ranks:
    return Ranks(workspace, fork)


@pytest.mark.slow
def test_one_rank_and_then_both(ranks: Ranks) -> None:
    """Begun on two ranks it ends on two with the same bits, and on one with the same samples."""
    assert ranks.train(*TWO, "name=straight") == [0, 0], ranks.said(0)
    run = ranks.survive([(NEVER, ("after the update", "4"))], *TWO)
    (line,) = [line for line in ranks.said(0).splitlines() if line.startswith("error")]
    assert "rank 1 is gone" in line
    assert "Traceback" not in ranks.said(0) + ranks.said(1)
    assert run.info["status"] == "interrupted"
    assert run.info["error"] in line
    (note,) = [entry["note"] for entry in read_metrics(run.metrics) if "note" in entry]
    assert note == {"ranks": [1], "error": run.info["error"]}
    ranks.survive([(("in the step", "7"), ("in the step", "7"))], *TWO)
    hung = ranks.train(*TWO, "name=killed", "--resume", "trainer.stall_seconds=4", kills=(NEVER, ("hangs", "8")))
    assert hung == [EXIT_REQUEUE, EXIT_REQUEUE], ranks.said(0)
    said = " ".join(ranks.said(0).split())
    assert (
        "step 8: rank 1 has got nothing done for 4 s, and the others wait for it (waiting for its next batch)" in said
    )
    notes = [entry["note"] for entry in read_metrics(run.metrics) if "note" in entry]
    assert [note["ranks"] for note in notes] == [[1], [1]]
    shutil.copytree(run.path, ranks.folder / "alone" / "killed")
    assert ranks.train(*TWO, "name=killed", "--resume-or-start") == [0, 0], ranks.said(0)
    straight = ranks.run("straight")
    assert_same_run(straight, run)
    alone = RunFolder(ranks.folder / "alone" / "killed")
    config = (alone.path / "config.yaml").read_text(encoding="utf-8")
    (alone.path / "config.yaml").write_text(config.replace("output: runs", "output: alone"), encoding="utf-8")
    words = (*ONE, "name=killed", "output=alone", "--resume")
    assert ranks.train(*words, kills=(NEVER,)) == [0], ranks.said(0)
    assert alone.curve("data/step_keys") == straight.curve("data/step_keys")
    for name in ("train/loss", "validation/loss"):
        assert dict(alone.curve(name)) == pytest.approx(dict(straight.curve(name)), rel=1e-4)


def plan(seed: int) -> list[tuple[Kill, Kill]]:
    """Ten kills of one rank or both, the steps ascending; only the first rank writes checkpoints."""
    draw, kills = random.Random(seed), []
    for step in range(4, STEPS - 1):
        first, second = (draw.choice(PLACES), str(step)), (draw.choice(PLACES[:2]), str(step))
        kills.append(draw.choice([(first, NEVER), (NEVER, second), (second, second)]))
    return kills


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "seed"), [("ddp", 0), ("fsdp", 1)])
def test_ten_kills(strategy: str, seed: int, ranks: Ranks) -> None:
    """With dropout, of which each rank has numbers of its own."""
    words = (*TWO, f"trainer.max_steps={STEPS}", f"trainer.strategy={strategy}", DROPOUT)
    assert ranks.train(*words, "name=straight") == [0, 0], ranks.said(0)
    run = ranks.survive(plan(seed), *words)
    assert ranks.train(*words, "name=killed", "--resume-or-start") == [0, 0], ranks.said(0)
    assert_same_run(ranks.run("straight"), run)
