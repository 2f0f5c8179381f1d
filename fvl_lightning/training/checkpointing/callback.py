"""The callback that saves a training, and stops it at the end of a step."""

import logging
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import Checkpoint

from fvl_lightning.core.errors import DataError
from fvl_lightning.training.checkpointing.best import BestBy
from fvl_lightning.training.checkpointing.due_validation import run_due_validation
from fvl_lightning.training.checkpointing.last_and_previous import (
    BEST,
    CheckpointFiles,
    best_checkpoint,
    read_checkpoint,
)
from fvl_lightning.training.fault_tolerance.heartbeat import announce_save
from fvl_lightning.training.fault_tolerance.signals import Stop, StopSignals
from fvl_lightning.training.stage_interface import StageInterface
from fvl_lightning.training.step_clock import clock_stopped

logger = logging.getLogger(__name__)


class CheckpointCallback(Checkpoint):
    """Writes `path` every `every` optimiser steps, at the last one, and when asked to stop.

    With `best` the weights of the best value of its metric are kept beside it, in best.ckpt.
    """

    def __init__(self, path: Path, every: int, signals: StopSignals, best: BestBy | None = None) -> None:
        self.path, self.every, self.signals, self.best = path, every, signals, best
        self.stop = Stop.NOBODY
        """The stop request that ended the training early, agreed by all ranks."""
        self.best_value: float | None = None
        """The best value of the metric so far, if the best weights are kept."""
        self._last_step = -1
        self._saving: tuple[Path, int] | None = None
        """The path of the save under way, and its step."""

    def on_fit_start(self, trainer: Trainer, *_: Any) -> None:
        """Reads the value of the best weights before a resume, which an evaluation that is due may change."""
        self._read_best(trainer)

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Takes the signals back from Lightning, which has just set handlers of its own."""
        self._last_step = trainer.global_step
        self.signals.listen()
        run_due_validation(trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Saves where it is due; stops where it was asked for."""
        step = trainer.global_step
        if step == self._last_step:
            return  # in the middle of an accumulated step, from which nothing could go on
        self._last_step = step
        self._end_save(trainer, wait=False)
        asked, last = self.signals.agreed(trainer), step == trainer.max_steps
        if asked or last or step % self.every == 0:
            with clock_stopped(trainer):
                self._save(trainer, self.path)
                if asked or last:
                    self._end_save(trainer)
        if asked and not last:
            self.stop = asked
            trainer.should_stop = True
            trainer.limit_val_batches = 0  # Lightning would validate at a stop; what is due a resume begins with

    def on_validation_end(self, trainer: Trainer, stage: StageInterface) -> None:
        """Keeps the weights where none before had a lower loss; all ranks have found the same one."""
        if self.best and self.best.is_loss:
            self._keep_best(trainer, stage, self.best)

    def on_evaluation_end(self, trainer: Trainer, stage: StageInterface) -> None:
        """Keeps the weights where none before had a better score; all ranks have found the same one."""
        if self.best and not self.best.is_loss:
            self._keep_best(trainer, stage, self.best)

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        """Waits for what is being written, and drops what only a further step would need."""
        self._end_save(trainer)
        _drop_optimizer_state(trainer)

    def on_exception(self, trainer: Trainer, *_: Any) -> None:
        """A single process keeps what it was saving; of several, others may not be there to agree.

        Lightning ignores every further Ctrl-C at this point, which would have to wait for the disk.
        """
        self.signals.restore()
        if trainer.world_size == 1:
            self._end_save(trainer)
        _drop_optimizer_state(trainer)

    def _keep_best(self, trainer: Trainer, stage: StageInterface, best: BestBy) -> None:
        if best.is_better(value := best.now(stage), self.best_value):
            self.best_value = value
            with clock_stopped(trainer):
                self._save(trainer, self.path.with_name(BEST), weights_only=True)

    def _save(self, trainer: Trainer, path: Path, weights_only: bool = False) -> None:
        announce_save(trainer)
        self._end_save(trainer)
        trainer.save_checkpoint(path, weights_only)
        self._saving = path, trainer.global_step
        for run_logger in trainer.loggers:
            run_logger.after_save_checkpoint(self)  # what is logged is never behind what a resume starts from
        if not _files(trainer).background:
            self._end_save(trainer)

    def _end_save(self, trainer: Trainer, wait: bool = True) -> None:
        """Ends the save under way, once all ranks have written, and says where it has failed."""
        files, strategy = _files(trainer), trainer.strategy
        if self._saving is None or not (wait or strategy.reduce_boolean_decision(files.written)):
            return
        (path, step), self._saving = self._saving, None
        files.finish()
        if not strategy.reduce_boolean_decision(bool(files.failure), all=False):
            return
        if path == self.path and step == trainer.max_steps:
            raise DataError(f"the last step was not saved: {files.failure}; make room, `--resume` finishes the run")
        if files.failure and trainer.is_global_zero:
            logger.warning("step %d was not saved: %s; the checkpoint before it is kept", step, files.failure)
        self._read_best(trainer)

    def _read_best(self, trainer: Trainer) -> None:
        stage = trainer.lightning_module
        assert isinstance(stage, StageInterface)
        found = best_checkpoint(self.path.parent, stage.run_hash) if self.best else None
        self.best_value = None if found is None or self.best is None else self.best.kept(read_checkpoint(found))


def _drop_optimizer_state(trainer: Trainer) -> None:
    """Drops gradients and the optimiser's state, which every strategy would move to main memory after the training.

    A save in the background has copies of its own.
    """
    for optimizer in trainer.optimizers:
        optimizer.zero_grad(set_to_none=True)
        optimizer.state.clear()


def _files(trainer: Trainer) -> CheckpointFiles:
    files = trainer.strategy.checkpoint_io
    assert isinstance(files, CheckpointFiles)
    return files
