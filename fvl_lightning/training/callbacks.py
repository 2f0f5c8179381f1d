"""What happens around the optimiser steps: logging, progress, checkpoints, and a stop at a step's end."""

import math
import resource
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fvl_lightning.core.errors import ConfigError


class LogWindow(Callback):
    """Logs the window's means, the learning rates, speed and memory every `every` optimiser steps."""

    def __init__(self, every: int) -> None:
        self.every = every
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
        measured = stage.logged.read()
        if not math.isfinite(measured["train/loss"]):
            raise ConfigError(
                f"the training loss is {measured['train/loss']} by step {step}, with a gradient norm of "
                f"{measured['train/gradient_norm']:.3g}: lower optimizer.learning_rate or raise optimizer.warmup_steps"
            )
        values = measured | {
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
    """A bar of optimiser steps with loss and time left, on a terminal only."""

    def __init__(self, title: str) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(), TimeRemainingColumn(),
        )
        self._title = title

    def on_train_start(self, trainer: Trainer, stage: Any) -> None:
        """Shows the bar, at the step a resumed run starts from."""
        self._task = self._progress.add_task(
            self._title, total=trainer.max_steps, completed=trainer.global_step, loss=""
        )
        if self._progress.console.is_terminal:
            self._progress.start()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Moves the bar."""
        self._progress.update(self._task, completed=trainer.global_step)

    def on_validation_end(self, trainer: Trainer, stage: Any) -> None:
        """Shows the validation loss of the last pass."""
        if stage.last_validation_loss is not None and hasattr(self, "_task"):
            self._progress.update(self._task, loss=f"validation loss {stage.last_validation_loss:.3f}")

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        """Takes the bar down."""
        self._progress.stop()

    def on_exception(self, trainer: Trainer, *_: Any) -> None:
        """Takes the bar down, so that the error is readable."""
        self._progress.stop()


class Checkpoints(Checkpoint):
    """Writes `path` every `every` optimiser steps and when asked to stop; Lightning writes beside and renames.

    The first Ctrl-C asks: the step under way is finished and saved. A second one stops at once.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every
        self.interrupted = False
        self._last_step = -1
        self._previous_handler: Any = None

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Listens for Ctrl-C, where this is the main thread (a notebook's is)."""
        self._last_step = trainer.global_step
        try:
            self._previous_handler = signal.signal(signal.SIGINT, self._ask_to_stop)
        except ValueError:
            self._previous_handler = None

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Saves where it is due; stops where it was asked for."""
        step = trainer.global_step
        if step == self._last_step:
            return  # in the middle of an accumulated step, from which nothing could go on
        self._last_step = step
        if self.interrupted or step % self.every == 0 or step == trainer.max_steps:
            trainer.save_checkpoint(self.path)
            for run_logger in trainer.loggers:
                run_logger.after_save_checkpoint(self)  # what is logged is never behind what a resume starts from
        if self.interrupted:
            trainer.should_stop = True
            if step * trainer.accumulate_grad_batches % trainer.val_check_batch:
                trainer.limit_val_batches = 0  # Lightning would validate at a stop, where no other run does

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        """Gives Ctrl-C back."""
        self._restore()

    def on_exception(self, trainer: Trainer, *_: Any) -> None:
        """Gives Ctrl-C back."""
        self._restore()

    def _ask_to_stop(self, signum: int, frame: FrameType | None) -> None:
        if self.interrupted:
            self._restore()
            raise KeyboardInterrupt
        self.interrupted = True

    def _restore(self) -> None:
        if self._previous_handler is not None:
            signal.signal(signal.SIGINT, self._previous_handler)
            self._previous_handler = None


def peak_memory_bytes() -> int:
    """Most memory this process has held: of the GPU where it trains on one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
