"""Logging of the training metrics of the optimiser steps."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning import LightningModule, Trainer

from fvl_lightning.training.memory_peak import peak_memory_bytes, reset_peak_memory
from fvl_lightning.training.stage_interface import StageInterface
from fvl_lightning.training.step_clock import StepClock


class LogWindow(StepClock):
    """Logs mean losses, learning rates, speed and memory every `every` optimiser steps.

    The values go to every logger, and to `trainer.callback_metrics`, where callbacks monitor them. Checkpoints have
    what a resumed run needs for the same values at the same steps.

    Args:
        every: optimiser steps of a window.
        earlier_seconds: the time of the steps before a resume, for a checkpoint of an earlier version, which lacks it.
    """

    def __init__(self, every: int, earlier_seconds: float = 0.0) -> None:
        super().__init__(earlier_seconds)
        self.every = every
        self.loss: float | None = None
        """The mean training loss of the last window; None before the first one."""
        self.tokens_per_second: list[float] = []
        """The speed of each window, without validation and checkpoints."""
        self._counted_before, self._last_step = earlier_seconds, -1
        self._window_start: int | None = None
        self._restored: dict[str, float] = {}

    @property
    def median_speed(self) -> float | None:
        """The median of `tokens_per_second`; after a resume without a window, the last value that was logged."""
        speeds = sorted(self.tokens_per_second)
        return speeds[len(speeds) // 2] if speeds else self._restored.get("train/tokens_per_second")

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Resets the memory peak of a training before the model is moved to the device."""
        if stage == "fit":
            reset_peak_memory(trainer.strategy.root_device)

    def on_save_checkpoint(self, trainer: Trainer, stage: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the last value of each metric, and the time and the start of the window under way."""
        super().on_save_checkpoint(trainer, stage, checkpoint)
        checkpoint["log_window"] = {
            "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
            "seconds": self.total_seconds - self._counted_before,
            "total_seconds": self.total_seconds,
            "start": self._window_start,
        }

    def on_load_checkpoint(self, trainer: Trainer, stage: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes over what `on_save_checkpoint` has added; checkpoints of earlier versions have less of it."""
        window = checkpoint.get("log_window", {})
        self._restored, self._window_start = window.get("metrics", {}), window.get("start")
        self.total_seconds = window.get("total_seconds", self.total_seconds)
        self._counted_before = self.total_seconds - window.get("seconds", 0.0)

    def on_train_start(self, trainer: Trainer, stage: LightningModule) -> None:
        """Starts to count, so that the first batches of an accumulated step do not form a window."""
        super().on_train_start(trainer, stage)
        self._last_step = trainer.global_step
        self._window_start = self._last_step if self._window_start is None else self._window_start
        self._publish(trainer, self._restored)

    def on_train_batch_end(self, trainer: Trainer, stage: StageInterface, *_: Any) -> None:
        """Logs every `every` optimiser steps, and at the last step."""
        super().on_train_batch_end(trainer, stage)
        step = trainer.global_step
        if step == self._last_step or (step % self.every and step != trainer.max_steps):
            return
        steps = step - (self._window_start or 0)
        self._last_step = self._window_start = step
        tokens, means = stage.window_tokens, stage.read_log()  # waits until the device has made the step
        seconds = self.read() - self._counted_before
        self._counted_before = self.total_seconds
        self.loss = means.get("train/loss", self.loss)  # missing if every step of the window was skipped
        self.tokens_per_second.append(tokens / max(seconds, 1e-9))
        values = means | {
            "train/tokens_per_second": self.tokens_per_second[-1],
            "train/step_seconds": seconds / steps,
            "train/samples": int(stage.samples),
            "machine/peak_memory_bytes": peak_memory_bytes(trainer.strategy.root_device),
        }
        optimizer = trainer.optimizers[0]
        rates = {group["name"].split("/")[0]: group["lr"] for group in optimizer.param_groups}
        values |= {f"learning_rate/{component}": rate for component, rate in rates.items()}
        self._publish(trainer, values)
        for run_logger in trainer.loggers:
            run_logger.log_metrics(values, step)

    @staticmethod
    def _publish(trainer: Trainer, values: Mapping[str, float]) -> None:
        trainer.callback_metrics.update({name: torch.tensor(float(value)) for name, value in values.items()})
