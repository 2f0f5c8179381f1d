"""The clock of a training's optimiser steps, which stands still during validation and checkpoints."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer


class StepClock(Callback):
    """Counts the seconds of the optimiser steps: wall clock, less validation and checkpoints.

    The time between two batches counts. There the host waits for the next samples, and for a device that is still busy
    with the batch before. The clock starts with the first batch, when loaders and their workers are ready.

    Checkpoints of the kit are left out exactly. After one that another callback writes, the clock runs again from the
    beginning of the next batch.
    """

    def __init__(self, earlier_seconds: float = 0.0) -> None:
        self.total_seconds = earlier_seconds
        """The time of all optimiser steps."""
        self._counted_until: float | None = None
        """The time of the last reading; None while the clock stands still."""
        self._begun = False

    def read(self) -> float:
        """Counts until now; returns `total_seconds`."""
        if self._counted_until is not None:
            now = time.perf_counter()
            self.total_seconds += now - self._counted_until
            self._counted_until = now
        return self.total_seconds

    def stop(self) -> None:
        """Counts until now, and lets the clock stand still."""
        self.read()
        self._counted_until = None

    def go_on(self) -> None:
        """Starts the clock again; before the first batch it does nothing."""
        if self._begun:
            self._counted_until = time.perf_counter()

    def on_train_start(self, trainer: Trainer, stage: LightningModule) -> None:
        """Forgets an earlier training."""
        self._begun, self._counted_until = False, None

    def on_train_batch_start(self, *_: Any) -> None:
        """Starts the clock if it stands still."""
        self._begun = True
        if self._counted_until is None:
            self.go_on()

    def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
        """Counts until now."""
        self.read()

    def on_validation_start(self, *_: Any) -> None:
        """Stops the clock at the end of the last batch, since Lightning has prepared the validation after it."""
        self._counted_until = None

    def on_validation_end(self, *_: Any) -> None:
        """Starts the clock again."""
        self.go_on()

    def on_save_checkpoint(self, trainer: Trainer, stage: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Stops the clock; nothing else announces a checkpoint of another callback."""
        self.stop()

    def on_train_end(self, *_: Any) -> None:
        """Stops the clock."""
        self.stop()


@contextmanager
def clock_stopped(trainer: Trainer) -> Iterator[None]:
    """Leaves the time of its body out of every clock of the trainer, such as that of a checkpoint."""
    clocks = [callback for callback in trainer.callbacks if isinstance(callback, StepClock)]
    device = trainer.strategy.root_device
    if device.type != "cpu":
        torch.accelerator.synchronize(device)  # the step ends when the device has made it; a save waits for it anyway
    for clock in clocks:
        clock.stop()
    try:
        yield
    finally:
        for clock in clocks:
            clock.go_on()
