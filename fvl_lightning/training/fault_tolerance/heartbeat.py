"""The threads of a rank that tell the others where it is and end it where one of them keeps all waiting.

They go through the store in which the ranks have found each other. The first rank hears all others and judges them; the
others hear its judgement, and whether it is still there.
"""

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import Checkpoint

from fvl_lightning.core.errors import UserError, first_line
from fvl_lightning.training.fault_tolerance.hang_detection import (
    Diagnosis,
    HangDetector,
    LostRankError,
    PeerError,
    PeerFailedError,
    Phase,
    RankStatus,
    TrainingProgress,
)

logger = logging.getLogger(__name__)

PUBLISH_SECONDS = 1.0
"""Between two lines, at most."""
GONE_SECONDS = 5.0
"""A process whose line stands still for as long, or whose store hangs up for as long, has ended."""
DIAGNOSIS_KEY = "verdict"


class Heartbeat:
    """One rank's part of the watch, from its making to `stop`.

    Args:
        rank: of this process.
        world_size: of all.
        store: of torch.distributed, common to all; it is cloned for every thread.
        seconds: see `trainer.stall_seconds`.
    """

    def __init__(self, rank: int, world_size: int, store: Any, seconds: float) -> None:
        self.rank, self.world_size, self.seconds = rank, world_size, seconds
        self.on_trouble: Callable[[PeerError], None] = lambda error: None
        """Writes down, on the first rank, why the training ends."""
        self._place, self._beat, self._trouble = TrainingProgress(), 0, ""
        self._pause = min(PUBLISH_SECONDS, seconds / 10)
        self._ended = threading.Event()
        self._store = store.clone()
        self._heard: tuple[dict[int, RankStatus], str] = {}, ""
        self._hung_up = False
        if rank == 0:
            store.multi_set([DIAGNOSIS_KEY, *map(str, range(world_size))], [""] * (world_size + 1))
        for run in (self._tell, self._judge):
            threading.Thread(target=run, args=(store.clone(),), daemon=True, name=f"heartbeat {run.__name__}").start()

    def at(self, place: TrainingProgress) -> None:
        """This rank has got something done, and is here now."""
        self._place = place
        self._beat += 1

    def stop(self) -> None:
        """Nobody is watched from here on."""
        self._ended.set()

    @contextmanager
    def explain_errors(self) -> Iterator[None]:
        """An error that only comes of another rank's end is told as that.

        Raises:
            LostRankError: another rank has gone without a word.
            PeerFailedError: another rank has gone for an error of its own.
        """
        try:
            yield
        except PeerError:
            raise
        except Exception as error:
            if self._trouble:  # it has been asked about already
                raise
            self._trouble = f"{type(error).__name__}: {first_line(error)}"
            gone = self._gone(2 * self._pause if isinstance(error, UserError) else GONE_SECONDS)
            if isinstance(error, UserError) or not gone:
                raise
            self._blame(gone, error)

    def _blame(self, gone: dict[int, RankStatus], error: Exception) -> None:
        lost = {rank: line for rank, line in gone.items() if not line.trouble}
        first = min(lost or gone)
        told: PeerError
        if lost:
            verdict = Diagnosis(sorted(lost), "is gone" if len(lost) == 1 else "are gone", lost[first])
            told = verdict.error(self.rank, self.world_size)
        else:
            line = gone[first]
            told = PeerFailedError(f"rank {first} has failed: {line.trouble}", [first], line.place.step)
        self.on_trouble(told)
        raise told from error

    def _gone(self, seconds: float) -> dict[int, RankStatus]:
        """The last lines of the ranks that have told nothing for so long."""
        others = [rank for rank in range(self.world_size) if rank != self.rank]
        try:
            self._store.set(str(self.rank), self._line(-1).text())
            before = _lines(self._store, others)
            time.sleep(seconds)
            after = _lines(self._store, others)
        except RuntimeError:  # the store is the first rank's
            time.sleep(seconds)
            return {0: self._heard[0].get(0, RankStatus())}
        return {rank: line for rank, line in after.items() if line.tick == before[rank].tick}

    def _line(self, tick: int) -> RankStatus:
        return RankStatus(tick, self._beat, self._place, self._trouble)

    def _tell(self, store: Any) -> None:
        """Tells, and hears, until the store hangs up; the judge does without it, since it may answer nothing."""
        heard = list(range(self.world_size)) if self.rank == 0 else [0]
        tick = 0
        try:
            while not self._ended.wait(self._pause):
                tick += 1
                store.set(str(self.rank), self._line(tick).text())
                self._heard = _lines(store, heard), store.get(DIAGNOSIS_KEY).decode()
        except RuntimeError:
            self._hung_up = True

    def _judge(self, store: Any) -> None:
        judge = HangDetector(range(self.world_size) if self.rank == 0 else [0], self.seconds)
        now, hung_up, before = 0.0, 0.0, time.monotonic()
        while not self._ended.wait(self._pause):
            # A process that was stopped for a while has no right to blame others for it.
            passed, before = time.monotonic() - before, time.monotonic()
            passed = min(passed, 2 * self._pause)
            now += passed
            hung_up += passed * self._hung_up
            lines, judged = self._heard
            judge.hear(lines, now)
            verdict = judge.silent(now) or (judge.stuck(now) if self.rank == 0 else None)
            if hung_up > GONE_SECONDS:
                verdict = Diagnosis([0], "is gone", judge.lines[0])
            if (judged or verdict) and not self._ended.is_set():
                if self.rank == 0:
                    store.set(DIAGNOSIS_KEY, "ended")
                self._end(verdict.error(self.rank, self.world_size) if verdict and not judged else None)

    def _end(self, error: LostRankError | None) -> None:
        """Ends this process under its main thread, which waits where nothing reaches it."""
        if error:
            if error.spoken:
                logger.error("%s", error)
            with suppress(Exception):
                self.on_trouble(error)
        if self.rank == 0:
            time.sleep(3 * self._pause)  # the others read the judgement in the store, which ends with this process
        for worker in multiprocessing.active_children():
            worker.kill()
        logging.shutdown()
        os._exit(os.EX_TEMPFAIL)


class HeartbeatCallback(Checkpoint):
    """Tells where the training is. A Checkpoint, so that Lightning calls it after those that save."""

    def __init__(self, tell: Callable[[TrainingProgress], None]) -> None:
        self._tell = tell
        self._batch, self._first_step = 0, -1

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """The first batch may take long."""
        self._first_step = trainer.global_step
        self._at(trainer, Phase.LOADING)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """A batch has come."""
        self._at(trainer, Phase.FORWARD)

    def on_before_backward(self, trainer: Trainer, *_: Any) -> None:
        """Its loss is there."""
        self._at(trainer, Phase.BACKWARD)

    def on_before_optimizer_step(self, trainer: Trainer, *_: Any) -> None:
        """The step's gradients are there."""
        self._at(trainer, Phase.UPDATING)

    def saves(self, trainer: Trainer) -> None:
        """A checkpoint is about to be saved."""
        self._at(trainer, Phase.SAVING)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """The batch is done with, the checkpoint that was due included."""
        self._batch += 1
        self._at(trainer, Phase.LOADING)

    def on_validation_start(self, trainer: Trainer, *_: Any) -> None:
        """A pass over the validation split begins."""
        self._at(trainer, Phase.VALIDATING)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """One of its batches is done with."""
        self._at(trainer, Phase.VALIDATING)

    def on_validation_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        """All of them are."""
        self._at(trainer, Phase.SUMMING_UP)

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        """The training goes on."""
        self._at(trainer, Phase.LOADING)

    def on_fit_end(self, *_: Any) -> None:
        """No more steps."""
        self._tell(TrainingProgress(self._batch + 1))

    def _at(self, trainer: Trainer, phase: Phase) -> None:
        step = trainer.global_step
        self._tell(TrainingProgress(self._batch, phase, step + 1, step == self._first_step))


def announce_save(trainer: Trainer) -> None:
    """The other ranks are told that this one is about to save a checkpoint."""
    for callback in trainer.callbacks:
        if isinstance(callback, HeartbeatCallback):
            callback.saves(trainer)


def _lines(store: Any, ranks: list[int]) -> dict[int, RankStatus]:
    return {
        rank: RankStatus.read(text) for rank, text in zip(ranks, store.multi_get(list(map(str, ranks))), strict=True)
    }
