"""What is told of the optimiser steps: logged values, and a progress bar or lines."""

import logging
import resource
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn

from fvl_lightning.core.terminal import progress, progress_text

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 60.0
"""Of a training that nobody watches, such as a job's."""


class LogWindow(Callback):
    """Logs the window's means, the learning rates, speed and memory every `every` optimiser steps."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.loss: float | None = None
        """Mean of the last window."""
        self.tokens_per_second: list[float] = []
        """One figure per window, validation and checkpoints left out."""
        self.total_seconds = 0.0
        """Time in optimiser steps, validation and checkpoints left out."""
        self._seconds, self._started, self._last_step = 0.0, 0.0, -1

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Counts from here, so that the first batches of an accumulated step are no window of their own."""
        self._last_step = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Starts the clock of a step; loading is part of it only where it makes the step wait."""
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, stage: Any, *_: Any) -> None:
        """Logs at every `every`th optimiser step, and at the last."""
        seconds = time.perf_counter() - self._started
        self._seconds += seconds
        self.total_seconds += seconds
        step = trainer.global_step
        if step == self._last_step or (step % self.every and step != trainer.max_steps):
            return
        self._last_step = step
        speed = stage.logged.row_tokens / max(self._seconds, 1e-9)
        self.tokens_per_second.append(speed)
        means = stage.read_log()
        self.loss = means.get("train/loss", self.loss)  # none where every step of the window was skipped
        values = means | {
            "train/tokens_per_second": speed,
            "train/step_seconds": self._seconds / self.every,
            "train/samples": int(stage.samples),
            "machine/peak_memory_bytes": peak_memory_bytes(),
        }
        optimizer = trainer.optimizers[0]
        rates = {group["name"].split("/")[0]: group["lr"] for group in optimizer.param_groups}
        values |= {f"learning_rate/{component}": rate for component, rate in rates.items()}
        self._seconds = 0.0
        for run_logger in trainer.loggers:
            run_logger.log_metrics(values, step)


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


def peak_memory_bytes() -> int:
    """Most memory this process has held: of the GPU where it trains on one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
