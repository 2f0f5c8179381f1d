"""When a training is saved, and its stop at a step's end."""

import logging
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import Checkpoint

from fvl_lightning.core.errors import DataError
from fvl_lightning.training.checkpoint_files import CheckpointFiles
from fvl_lightning.training.stop import Stop, StopSignals

logger = logging.getLogger(__name__)


class Checkpoints(Checkpoint):
    """Writes `path` every `every` optimiser steps, at the last one, and when asked to stop."""

    def __init__(self, path: Path, every: int, signals: StopSignals) -> None:
        self.path, self.every, self.signals = path, every, signals
        self.stop = Stop.NOBODY
        """Who ended the training before its time, as all ranks agree."""
        self._last_step = -1

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Takes the signals back from Lightning, which has just set handlers of its own."""
        self._last_step = trainer.global_step
        self.signals.listen()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Saves where it is due; stops where it was asked for."""
        step = trainer.global_step
        if step == self._last_step:
            return  # in the middle of an accumulated step, from which nothing could go on
        self._last_step = step
        asked, last = self.signals.agreed(trainer), step == trainer.max_steps
        if asked or last or step % self.every == 0:
            self._save(trainer, step)
        if asked and not last:
            self.stop = asked
            trainer.should_stop = True
            if step * trainer.accumulate_grad_batches % trainer.val_check_batch:
                trainer.limit_val_batches = 0  # Lightning would validate at a stop, where no other run does

    def _save(self, trainer: Trainer, step: int) -> None:
        trainer.save_checkpoint(self.path)
        for run_logger in trainer.loggers:
            run_logger.after_save_checkpoint(self)  # what is logged is never behind what a resume starts from
        files = trainer.strategy.checkpoint_io
        assert isinstance(files, CheckpointFiles)
        if files.failure and step < trainer.max_steps:
            logger.warning("step %d was not saved: %s; the checkpoint before it is kept", step, files.failure)
        if step == trainer.max_steps and trainer.strategy.reduce_boolean_decision(bool(files.failure), all=False):
            raise DataError(f"the last step was not saved: {files.failure}; make room, `--resume` finishes the run")
