"""A signal while a training on two ranks is still beginning: its exit code and one sentence, whatever they wait in."""

from pathlib import Path

import pytest

from fvl_lightning.core.errors import EXIT_INTERRUPTED, EXIT_REQUEUE
from fvl_lightning.training.fault_tolerance.signals import INTERRUPTED, NOT_BEGUN
from tests.conftest import ROOT, TINY, Run

HOOK = Path(__file__).with_name("starting")
TWO = ("trainer.strategy=ddp", "trainer.devices=2", "trainer.batch_size=4", "trainer.accelerator=cpu")
ENDS = {"SIGTERM": (EXIT_REQUEUE, f"{NOT_BEGUN}\n"), "SIGINT": (EXIT_INTERRUPTED, f"{INTERRUPTED}\n")}


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize(
    "moment",
    [
        "the parent imports",
        pytest.param("the ranks import", marks=pytest.mark.slow),
        pytest.param("the first rank waits in the store", marks=pytest.mark.slow),
        pytest.param("the group is made", marks=pytest.mark.slow),
    ],
)
def test_a_signal_at_a_moment_of_the_start(
    moment: str, name: str, tmp_path: Path, fvl: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HOOK))
    monkeypatch.setenv("MOMENT", moment)
    monkeypatch.setenv("SIGNAL", name)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    words = ("experiments/demo/finetune.yaml", *TINY, *TWO)
    done = fvl(tmp_path, "train", *words, "--resume-or-start", timeout=110)
    assert (done.returncode, done.stderr) == ENDS[name]
    assert not (tmp_path / "runs").exists()
