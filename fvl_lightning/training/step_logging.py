"""What is told of the optimiser steps: logged values, and a progress bar or lines."""

import logging
import resource
import time
from typing import Any

import torch
from lightning import Callback, Trainer

logger = logging.getLogger(__name__)


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


def peak_memory_bytes() -> int:
    """Most memory this process has held: of the GPU where it trains on one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
