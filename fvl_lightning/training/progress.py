"""Progress of a training: a bar on a terminal, lines elsewhere."""

import logging
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn

from fvl_lightning.core.terminal import progress, progress_text
from fvl_lightning.training.step_logging import LogWindow

logger = logging.getLogger(__name__)


SECONDS_BETWEEN_LINES = 60.0
"""Of a training that nobody watches, such as a job's."""


class StepProgress(Callback):
    """Step, losses and time left: a bar on a terminal; in a log, where nobody watches, a line now and then."""

    def __init__(self, title: str, folder: Path, window: LogWindow) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), progress_text("fields[losses]"))
        self._progress = progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), stderr=False)
        self._title, self._folder, self._window = title, folder, window
        self._losses: dict[str, float] = {}
        self._said = 0.0

    def on_train_start(self, trainer: Trainer, stage: Any) -> None:
        """Shows the bar, or a line, at the step a resumed run starts from."""
        step, steps = trainer.global_step, trainer.max_steps
        self._task = self._progress.add_task(self._title, total=steps, completed=step, losses="")
        if self._watched:
            self._progress.start()
            return
        self._said = time.monotonic()
        learning = sum(parameter.numel() for parameter in stage.parameters() if parameter.requires_grad)
        where = f"{self._folder}: step {step} of {steps}"
        logger.info("%s, %s parameters learn on %s", where, f"{learning:,}", trainer.strategy.root_device)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Moves the bar, or writes a line where there has been none for a while."""
        if self._window.loss is not None:
            self._losses["loss"] = self._window.loss
        self._move(trainer)
        if not self._watched and time.monotonic() - self._said > SECONDS_BETWEEN_LINES:
            self._say(trainer)

    def on_validation_end(self, trainer: Trainer, stage: Any) -> None:
        """Tells the loss of the pass."""
        self._losses["validation"] = stage.last_validation_loss
        self._move(trainer)
        if not self._watched:
            self._say(trainer)

    @property
    def _watched(self) -> bool:
        return self._progress.console.is_terminal

    def _move(self, trainer: Trainer) -> None:
        losses = ", ".join(f"{name} {value:.3f}" for name, value in self._losses.items())
        self._progress.update(self._task, completed=trainer.global_step, losses=losses)

    def _say(self, trainer: Trainer) -> None:
        self._said = time.monotonic()
        task = self._progress.tasks[self._task]
        words = [f"{task.description}: step {trainer.global_step} of {trainer.max_steps}", task.fields["losses"]]
        if task.time_remaining:
            words.append(f"{timedelta(seconds=task.time_remaining)} left")
        logger.info("%s", ", ".join(word for word in words if word))

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        """Takes the bar down."""
        self._progress.stop()

    def on_exception(self, trainer: Trainer, *_: Any) -> None:
        """Takes the bar down, so that the error is readable."""
        self._progress.stop()
