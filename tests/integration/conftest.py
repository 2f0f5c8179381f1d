"""Trainings that nothing stops, and what stops the others."""

import signal
from pathlib import Path
from typing import Any

import pytest

from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.training.step_logging import LogWindow
from tests.conftest import TINY_DATA, Run, furnish
from tests.integration.runs import STEPS, UNTRACKED, StopAt, Straight


@pytest.fixture(scope="session")
def straight(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, fvl_here: Run) -> Straight:
    """A run of an experiment that nothing stops, made once for each."""
    runs: dict[tuple[str, ...], RunFolder] = {}

    def train(experiment: tuple[str, ...]) -> RunFolder:
        if experiment not in runs:
            folder = furnish(tmp_path_factory.mktemp("straight"), tiny_data)
            done = fvl_here(folder, "train", *experiment, *TINY_DATA, *STEPS, UNTRACKED, "name=straight")
            assert done.returncode == 0, done.stderr
            runs[experiment] = RunFolder(folder / "runs" / "straight")
        return runs[experiment]

    return train


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> StopAt:
    """Ctrl-C (or another signal, or an error) when the n-th batch of a training is done; once."""

    def arm(batches: int, what: signal.Signals | BaseException = signal.SIGINT) -> None:
        original, seen = LogWindow.on_train_batch_end, 0

        def on_train_batch_end(self: LogWindow, *arguments: Any) -> None:
            nonlocal seen
            original(self, *arguments)
            seen += 1
            if seen == batches:
                if isinstance(what, BaseException):
                    raise what
                signal.raise_signal(what)

        monkeypatch.setattr(LogWindow, "on_train_batch_end", on_train_batch_end)

    return arm
