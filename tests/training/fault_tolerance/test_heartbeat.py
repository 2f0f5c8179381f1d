"""The heartbeat of ranks that die, freeze or hang: processes with real threads and a real store, without training."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import distributed

from fvl_lightning.core.errors import DataError
from fvl_lightning.training.fault_tolerance import heartbeat as module
from fvl_lightning.training.fault_tolerance.hang_detection import (
    LostRankError,
    PeerFailedError,
    Phase,
    TrainingProgress,
)
from fvl_lightning.training.fault_tolerance.heartbeat import Heartbeat, HeartbeatCallback
from tests.integration.runs import free_port

SECONDS = 1.0
Life = Callable[[int, Heartbeat], None]
"""What a rank does."""


def be(rank: int, port: int, said: Path, life: Life, seconds: float) -> None:
    """A rank that writes down what its heartbeat or its error says."""

    def write(words: object) -> None:
        with said.open("a", encoding="utf-8") as file:
            file.write(f"rank {rank}: {words}\n")

    module.GONE_SECONDS = 0.7
    module.logger.error = lambda form, error: write(error)  # type: ignore[assignment]
    store = distributed.TCPStore("127.0.0.1", port, 2, rank == 0, timedelta(seconds=30))
    heartbeat = Heartbeat(rank, 2, store, seconds)
    try:
        with heartbeat.explain_errors():
            life(rank, heartbeat)
    except (LostRankError, PeerFailedError, DataError) as error:
        write(f"{type(error).__name__}: {error}")
        os._exit(9)
    os._exit(0)


def live(
    tmp_path: Path, life: Life, wait: tuple[int, ...] = (0, 1), seconds: float = SECONDS
) -> tuple[list[int | None], str]:
    """Exit codes of two ranks, and what was said."""
    context, port, said = multiprocessing.get_context("fork"), free_port(), tmp_path / "said.txt"
    said.touch()
    ranks = [context.Process(target=be, args=(rank, port, said, life, seconds)) for rank in range(2)]
    for process in ranks:
        process.start()
    try:
        for rank in wait:
            ranks[rank].join(60)
        return [process.exitcode for process in ranks], said.read_text(encoding="utf-8")
    finally:
        for process in ranks:
            process.kill()


def test_a_rank_that_hangs(tmp_path: Path) -> None:
    def life(rank: int, heartbeat: Heartbeat) -> None:
        heartbeat.report(TrainingProgress(4, Phase.LOADING if rank else Phase.BACKWARD, 5))
        time.sleep(60)

    codes, said = live(tmp_path, life)
    assert codes == [os.EX_TEMPFAIL] * 2
    assert said.startswith("rank 0: step 5: rank 1 has got nothing done for 1 s, and the others wait for it (waiting")
    assert len(said.splitlines()) == 1


def test_a_rank_whose_machine_is_frozen(tmp_path: Path) -> None:
    def life(rank: int, heartbeat: Heartbeat) -> None:
        heartbeat.report(TrainingProgress(4, Phase.SAVING, 5))
        time.sleep(4 * heartbeat._pause)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(60)

    codes, said = live(tmp_path, life, wait=(0,))
    assert codes == [os.EX_TEMPFAIL, None]
    assert "step 5: rank 1 has not answered for 1 s (last heard of saving a checkpoint)" in said


def test_the_first_rank_dies_and_takes_the_store_with_it(tmp_path: Path) -> None:
    def life(rank: int, heartbeat: Heartbeat) -> None:
        heartbeat.report(TrainingProgress(4, Phase.LOADING, 5))
        time.sleep(5 * heartbeat._pause)
        if rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    codes, said = live(tmp_path, life)
    assert codes == [-signal.SIGKILL, os.EX_TEMPFAIL]
    assert said.startswith("rank 1: step 5: rank 0 ")


@pytest.mark.slow
def test_what_moves_slowly_or_is_stopped_in_time_is_left_alone(tmp_path: Path) -> None:
    def life(rank: int, heartbeat: Heartbeat) -> None:
        for phase in (Phase.VALIDATING, Phase.VALIDATING, Phase.SAVING):  # the last of which takes longer than SECONDS
            heartbeat.report(TrainingProgress(4, phase, 5))
            time.sleep(0.6 * SECONDS if phase is Phase.VALIDATING else 1.5 * SECONDS)
        heartbeat.report(TrainingProgress(5, Phase.LOADING, 6))
        heartbeat.stop()
        time.sleep(1.5 * SECONDS)

    assert live(tmp_path, life) == ([0, 0], "")


@pytest.mark.slow
@pytest.mark.parametrize("words", [True, False], ids=["for an error of its own", "without a word"])
def test_an_error_that_comes_of_another_ranks_end(tmp_path: Path, words: bool) -> None:
    """The other's connection breaks, as gloo's does."""

    def life(rank: int, heartbeat: Heartbeat) -> None:
        heartbeat.report(TrainingProgress(4, Phase.FORWARD, 5))
        time.sleep(3 * heartbeat._pause)
        if rank == 1 and words:
            raise DataError("no such picture")
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        while not heartbeat._find_gone(0.7):
            pass
        raise RuntimeError("connection closed by peer")

    codes, said = live(tmp_path, life, seconds=4.0)
    if words:
        assert codes == [9, 9]
        assert "rank 1: DataError: no such picture" in said
        assert "rank 0: PeerFailedError: rank 1 has failed: DataError: no such picture" in said
    else:
        assert codes == [9, -signal.SIGKILL]
        assert said.startswith("rank 0: LostRankError: step 5: rank 1 is gone (last heard of in the forward pass)")


def test_where_the_training_is() -> None:
    places: list[TrainingProgress] = []
    beats = HeartbeatCallback(places.append)
    trainer: Any = SimpleNamespace(global_step=3)
    beats.on_train_start(trainer)
    beats.on_train_batch_start(trainer)
    beats.on_before_backward(trainer)
    beats.on_before_optimizer_step(trainer)
    trainer.global_step = 4
    beats.report_save(trainer)
    beats.on_train_batch_end(trainer)
    beats.on_validation_start(trainer)
    beats.on_validation_batch_end(trainer)
    beats.on_validation_epoch_end(trainer)
    beats.on_validation_end(trainer)
    beats.on_fit_end(trainer)
    assert [place.phase for place in places] == [
        Phase.LOADING, Phase.FORWARD, Phase.BACKWARD, Phase.UPDATING, Phase.SAVING, Phase.LOADING, Phase.VALIDATING,
        Phase.VALIDATING, Phase.SUMMING_UP, Phase.LOADING, Phase.OUTSIDE,
    ]  # fmt: skip
    assert [place.batch for place in places] == [0] * 5 + [1] * 5 + [2]
    assert [place.step for place in places] == [4] * 4 + [5] * 6 + [0]
    assert [place.fresh for place in places] == [True] * 4 + [False] * 7
