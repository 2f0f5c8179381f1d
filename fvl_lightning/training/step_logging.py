"""Logging of the training metrics of the optimiser steps."""

import resource
import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from fvl_lightning.training.stage_interface import StageInterface


class LogWindow(Callback):
    """Logs mean losses, learning rates, speed and memory every `every` optimiser steps.

    The values go to every logger, and to `trainer.callback_metrics`, where callbacks monitor them. Checkpoints have
    what a resumed run needs for the same values at the same steps.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.loss: float | None = None
        """The mean training loss of the last window; None before the first one."""
        self.tokens_per_second: list[float] = []
        """The speed of each window, without validation and checkpoints."""
        self.total_seconds = 0.0
        """The time of all optimiser steps, without validation and checkpoints."""
        self._seconds, self._started, self._last_step = 0.0, 0.0, -1
        self._window_start: int | None = None
        self._restored: dict[str, float] = {}

    def on_save_checkpoint(self, trainer: Trainer, stage: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the last value of each metric, and the time and the start of the window under way."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        checkpoint["log_window"] = {"metrics": metrics, "seconds": self._seconds, "start": self._window_start}

    def on_load_checkpoint(self, trainer: Trainer, stage: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes over what `on_save_checkpoint` has added; checkpoints of earlier versions have nothing of it."""
        window = checkpoint.get("log_window", {})
        self._restored, self._seconds = window.get("metrics", {}), window.get("seconds", 0.0)
        self._window_start = window.get("start")

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Starts to count, so that the first batches of an accumulated step do not form a window."""
        self._last_step = trainer.global_step
        self._window_start = self._last_step if self._window_start is None else self._window_start
        self._publish(trainer, self._restored)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Starts the clock of a batch."""
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, stage: StageInterface, *_: Any) -> None:
        """Logs every `every` optimiser steps, and at the last step."""
        seconds = time.perf_counter() - self._started
        self._seconds += seconds
        self.total_seconds += seconds
        step = trainer.global_step
        if step == self._last_step or (step % self.every and step != trainer.max_steps):
            return
        steps = step - (self._window_start or 0)
        self._last_step = self._window_start = step
        speed = stage.window_tokens / max(self._seconds, 1e-9)
        self.tokens_per_second.append(speed)
        means = stage.read_log()
        self.loss = means.get("train/loss", self.loss)  # missing if every step of the window was skipped
        values = means | {
            "train/tokens_per_second": speed,
            "train/step_seconds": self._seconds / steps,
            "train/samples": int(stage.samples),
            "machine/peak_memory_bytes": peak_memory_bytes(),
        }
        optimizer = trainer.optimizers[0]
        rates = {group["name"].split("/")[0]: group["lr"] for group in optimizer.param_groups}
        values |= {f"learning_rate/{component}": rate for component, rate in rates.items()}
        self._seconds = 0.0
        self._publish(trainer, values)
        for run_logger in trainer.loggers:
            run_logger.log_metrics(values, step)

    @staticmethod
    def _publish(trainer: Trainer, values: Mapping[str, float]) -> None:
        trainer.callback_metrics.update({name: torch.tensor(float(value)) for name, value in values.items()})


def peak_memory_bytes() -> int:
    """Returns the peak memory of this process: on the GPU if there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
