"""Per-rank threads that publish progress and stop the process when a peer hangs.

They communicate through the store of the process group. Rank 0 monitors all ranks and publishes a diagnosis; the other
ranks read the diagnosis, and monitor rank 0.
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
from torch import distributed

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
from fvl_lightning.training.fault_tolerance.process_exit import EXIT_SECONDS, exit_within

logger = logging.getLogger(__name__)

PUBLISH_SECONDS = 1.0
"""The longest pause between two statuses of a rank."""
GONE_SECONDS = 5.0
"""A process has ended if its status does not change, or its store does not answer, for this long."""
DIAGNOSIS_KEY = "verdict"


class Heartbeat:
    """Publishes this rank's progress and monitors its peers, from its creation until `stop`.

    Args:
        rank: the rank of this process.
        world_size: the number of ranks.
        store: the torch.distributed store that all ranks share; each thread uses a clone of it.
        seconds: the timeout, see `trainer.stall_seconds`.
    """

    def __init__(self, rank: int, world_size: int, store: distributed.Store, seconds: float) -> None:
        self.rank, self.world_size, self.seconds = rank, world_size, seconds
        self.on_peer_error: Callable[[PeerError], None] = lambda error: None
        """Called on every rank that ends because of a peer; rank 0 records with it why the training ended."""
        self._progress, self._beat, self._error = TrainingProgress(), 0, ""
        self._pause = min(PUBLISH_SECONDS, seconds / 10)
        self._stopped = threading.Event()
        self._store = store.clone()  # type: ignore[attr-defined]  # missing in torch's stubs
        self._received: tuple[dict[int, RankStatus], str] = {}, ""
        self._store_gone = False
        if rank == 0:
            keys = [DIAGNOSIS_KEY, *map(str, range(world_size))]
            store.multi_set(keys, [""] * len(keys))  # type: ignore[attr-defined]  # as above
        for loop in (self._publish, self._monitor):
            own_store = store.clone()  # type: ignore[attr-defined]  # as above
            threading.Thread(target=loop, args=(own_store,), daemon=True, name=f"heartbeat {loop.__name__}").start()

    def report(self, progress: TrainingProgress) -> None:
        """Records that this rank made progress, for the next status it publishes."""
        self._progress = progress
        self._beat += 1

    def stop(self) -> None:
        """Stops monitoring."""
        self._stopped.set()

    @contextmanager
    def explain_errors(self) -> Iterator[None]:
        """Re-raises an error caused by a failed peer as a peer error.

        Raises:
            LostRankError: another rank died or was killed.
            PeerFailedError: another rank ended with an error of its own.
        """
        try:
            yield
        except PeerError:
            raise
        except Exception as error:
            if self._error:  # an outer context: the inner one has explained the error
                raise
            self._error = f"{type(error).__name__}: {first_line(error)}"
            gone = self._find_gone(2 * self._pause if isinstance(error, UserError) else GONE_SECONDS)
            if isinstance(error, UserError) or not gone:
                raise
            peer_error = self._peer_error(gone)
            self.on_peer_error(peer_error)
            raise peer_error from error

    def _peer_error(self, gone: dict[int, RankStatus]) -> PeerError:
        lost = {rank: status for rank, status in gone.items() if not status.error}
        first = min(lost or gone)
        if lost:
            diagnosis = Diagnosis(sorted(lost), "is gone" if len(lost) == 1 else "are gone", lost[first])
            return diagnosis.error(self.rank, self.world_size)
        status = gone[first]
        return PeerFailedError(f"rank {first} has failed: {status.error}", [first], status.progress.step)

    def _find_gone(self, seconds: float) -> dict[int, RankStatus]:
        """Returns the last statuses of the ranks that publish nothing for `seconds`."""
        others = [rank for rank in range(self.world_size) if rank != self.rank]
        try:
            self._store.set(str(self.rank), self._status(-1).to_json())
            before = _read_statuses(self._store, others)
            time.sleep(seconds)
            after = _read_statuses(self._store, others)
        except RuntimeError:  # rank 0 holds the store
            time.sleep(seconds)
            return {0: self._received[0].get(0, RankStatus())}
        return {rank: status for rank, status in after.items() if status.tick == before[rank].tick}

    def _status(self, tick: int) -> RankStatus:
        return RankStatus(tick, self._beat, self._progress, self._error)

    def _publish(self, store: distributed.Store) -> None:
        """Publishes and reads statuses until the store is gone.

        `_monitor` has a thread of its own, since a call to the store may never return.
        """
        monitored = list(range(self.world_size)) if self.rank == 0 else [0]
        tick = 0
        try:
            while not self._stopped.wait(self._pause):
                tick += 1
                store.set(str(self.rank), self._status(tick).to_json())
                self._received = _read_statuses(store, monitored), store.get(DIAGNOSIS_KEY).decode()
        except RuntimeError:
            self._store_gone = True

    def _monitor(self, store: distributed.Store) -> None:
        detector = HangDetector(range(self.world_size) if self.rank == 0 else [0], self.seconds)
        now, store_gone, before = 0.0, 0.0, time.monotonic()
        while not self._stopped.wait(self._pause):
            # The clock leaves out the time in which this process was stopped: the others are not to blame for it.
            passed, before = time.monotonic() - before, time.monotonic()
            passed = min(passed, 2 * self._pause)
            now += passed
            store_gone += passed * self._store_gone
            statuses, published = self._received
            detector.update(statuses, now)
            diagnosis = detector.find_silent(now) or (detector.find_stuck(now) if self.rank == 0 else None)
            if store_gone > GONE_SECONDS:
                diagnosis = Diagnosis([0], "is gone", detector.statuses[0])
            if (published or diagnosis) and not self._stopped.is_set():
                if self.rank == 0:
                    store.set(DIAGNOSIS_KEY, "ended")
                self._exit(diagnosis.error(self.rank, self.world_size) if diagnosis and not published else None)

    def _exit(self, error: LostRankError | None) -> None:
        """Ends the process from this thread, since the main thread waits in a call that nothing interrupts."""
        exit_within(EXIT_SECONDS, os.EX_TEMPFAIL)  # what follows writes files and logs
        if error:
            if error.is_reporter:
                logger.error("%s", error)
            with suppress(Exception):
                self.on_peer_error(error)
        if self.rank == 0:
            time.sleep(3 * self._pause)  # the others read the diagnosis in the store, which ends with this process
        for worker in multiprocessing.active_children():
            worker.kill()
        logging.shutdown()
        os._exit(os.EX_TEMPFAIL)


class HeartbeatCallback(Checkpoint):
    """Reports the progress of training.

    It is a Checkpoint, so that Lightning calls it after the callbacks that save.
    """

    def __init__(self, report: Callable[[TrainingProgress], None]) -> None:
        self._report_progress = report
        self._batch, self._first_step = 0, -1

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Reports that the first batch is being loaded."""
        self._first_step = trainer.global_step
        self._report(trainer, Phase.LOADING)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Reports the forward pass."""
        self._report(trainer, Phase.FORWARD)

    def on_before_backward(self, trainer: Trainer, *_: Any) -> None:
        """Reports the backward pass."""
        self._report(trainer, Phase.BACKWARD)

    def on_before_optimizer_step(self, trainer: Trainer, *_: Any) -> None:
        """Reports the optimiser step."""
        self._report(trainer, Phase.UPDATING)

    def report_save(self, trainer: Trainer) -> None:
        """Reports that a checkpoint is about to be saved."""
        self._report(trainer, Phase.SAVING)

    def report_evaluation(self, trainer: Trainer) -> None:
        """Reports that questions of tasks are about to be answered, or that some of them are."""
        self._report(trainer, Phase.EVALUATING)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Counts the batch, whose checkpoint has been saved if one was due."""
        self._batch += 1
        self._report(trainer, Phase.LOADING)

    def on_validation_start(self, trainer: Trainer, *_: Any) -> None:
        """Reports the start of a validation pass."""
        self._report(trainer, Phase.VALIDATING)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Reports a finished validation batch."""
        self._report(trainer, Phase.VALIDATING)

    def on_validation_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        """Reports the reduction of the validation loss over ranks."""
        self._report(trainer, Phase.SUMMING_UP)

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        """Reports that training continues."""
        self._report(trainer, Phase.LOADING)

    def on_fit_end(self, *_: Any) -> None:
        """Reports the end of the steps."""
        self._report_progress(TrainingProgress(self._batch + 1))

    def _report(self, trainer: Trainer, phase: Phase) -> None:
        step = trainer.global_step
        self._report_progress(TrainingProgress(self._batch, phase, step + 1, step == self._first_step))


def announce_save(trainer: Trainer) -> None:
    """Reports to the other ranks that this one is about to save a checkpoint."""
    for callback in trainer.callbacks:
        if isinstance(callback, HeartbeatCallback):
            callback.report_save(trainer)


def announce_evaluation(trainer: Trainer) -> None:
    """Reports to the other ranks that this one answers questions of tasks."""
    for callback in trainer.callbacks:
        if isinstance(callback, HeartbeatCallback):
            callback.report_evaluation(trainer)


def _read_statuses(store: distributed.Store, ranks: list[int]) -> dict[int, RankStatus]:
    texts = store.multi_get(list(map(str, ranks)))
    return {rank: RankStatus.from_json(text) for rank, text in zip(ranks, texts, strict=True)}
