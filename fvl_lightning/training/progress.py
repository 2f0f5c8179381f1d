"""Progress output of a training: a bar on a terminal, log lines elsewhere."""

import logging
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn

from fvl_lightning.core.terminal import progress, progress_text
from fvl_lightning.training.stage_interface import StageInterface
from fvl_lightning.training.step_logging import LogWindow

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 60.0
"""Between two log lines, if the output is not a terminal."""


class StepProgress(Callback):
    """Shows the step, the losses and the time left.

    Args:
        title: the name of the training.
        folder: the run folder, as the first line names it.
        window: the source of the training loss.
    """

    def __init__(self, title: str, folder: Path, window: LogWindow) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), progress_text("fields[losses]"))
        self._progress = progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), stderr=False)
        self._title, self._folder, self._window = title, folder, window
        self._losses: dict[str, float] = {}
        self._logged_at = 0.0

    def on_train_start(self, trainer: Trainer, stage: LightningModule) -> None:
        """Shows or logs folder, step and size of the run, where it starts or resumes, and shows the bar."""
        step, steps = trainer.global_step, trainer.max_steps
        self._task = self._progress.add_task(self._title, total=steps, completed=step, losses="")
        trainable = sum(parameter.numel() for parameter in stage.parameters() if parameter.requires_grad)
        begins = f"{self._folder}: step {step} of {steps}"
        begins = f"{begins}, {trainable:,} trainable parameters on {trainer.strategy.root_device}"
        if self._on_terminal:
            self._progress.console.print(begins, soft_wrap=True)
            self._progress.start()
            return
        self._logged_at = time.monotonic()
        logger.info("%s", begins)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Updates the bar, or logs a line if the last one is a minute old."""
        if self._window.loss is not None:
            self._losses["loss"] = self._window.loss
        self._update(trainer)
        if not self._on_terminal and time.monotonic() - self._logged_at > SECONDS_BETWEEN_LINES:
            self._log(trainer)

    def on_validation_end(self, trainer: Trainer, stage: StageInterface) -> None:
        """Shows the validation loss."""
        assert stage.last_validation_loss is not None
        self._losses["validation"] = stage.last_validation_loss
        self._update(trainer)
        if not self._on_terminal:
            self._log(trainer)

    @property
    def _on_terminal(self) -> bool:
        return self._progress.console.is_terminal

    def _update(self, trainer: Trainer) -> None:
        losses = ", ".join(f"{name} {value:.3f}" for name, value in self._losses.items())
        self._progress.update(self._task, completed=trainer.global_step, losses=losses)

    def _log(self, trainer: Trainer) -> None:
        self._logged_at = time.monotonic()
        task = self._progress.tasks[self._task]
        parts = [f"{task.description}: step {trainer.global_step} of {trainer.max_steps}", task.fields["losses"]]
        if task.time_remaining:
            parts.append(f"{timedelta(seconds=task.time_remaining)} left")
        logger.info("%s", ", ".join(part for part in parts if part))

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        """Removes the bar."""
        self._progress.stop()

    def on_exception(self, trainer: Trainer, *_: Any) -> None:
        """Removes the bar, so that the error is readable."""
        self._progress.stop()
