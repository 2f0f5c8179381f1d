"""SIGTERM while a training on two ranks is still beginning: exit code 75 and one sentence, whatever they wait in."""

from pathlib import Path

import pytest

from fvl_lightning.core.errors import EXIT_REQUEUE
from fvl_lightning.training.fault_tolerance.signals import NOT_BEGUN
from tests.conftest import TINY, Run, furnish

HOOK = Path(__file__).with_name("starting")
TWO = ("trainer.strategy=ddp", "trainer.devices=2", "trainer.batch_size=4", "trainer.accelerator=cpu")


@pytest.mark.parametrize(
    "moment",
    [
        "the parent imports",
        pytest.param("the ranks import", marks=pytest.mark.slow),
        pytest.param("the first rank waits in the store", marks=pytest.mark.slow),
        pytest.param("the group is made", marks=pytest.mark.slow),
    ],
)
def test_sigterm_at_a_moment_of_the_start(
    moment: str, tmp_path: Path, fvl: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HOOK))
    monkeypatch.setenv("MOMENT", moment)
    furnish(tmp_path, tmp_path / "nowhere")
    words = ("experiments/demo/finetune.yaml", *TINY, *TWO)
    done = fvl(tmp_path, "train", *words, "--resume-or-start", timeout=110)
    assert done.returncode == EXIT_REQUEUE, done.stderr
    assert done.stderr == f"{NOT_BEGUN}\n"
    assert not (tmp_path / "runs").exists()
