"""The speed that a training logs beside a clock on the wall, which waits for the device only twice."""

import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import Checkpoint

from benchmarks.gpu.runner import Findings, Settings
from benchmarks.gpu.timing import synchronize
from benchmarks.gpu.training import SyntheticBatches, experiment_of, with_random_weights
from datamodules.demo.tokenizer import save_tokenizer
from fvl_lightning.training.distributed.process_group import init_process_group
from fvl_lightning.training.step_logging import LogWindow
from fvl_lightning.training.trainer import build_trainer

ACCUMULATE = 2
"""Batches of a step: between them nothing waits for the device, where a wrong clock is most wrong."""
TOLERANCE = 0.05


class WallClock(Checkpoint):
    """Seconds between the ends of two steps. As a checkpoint callback it keeps Lightning from adding its own."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.seconds = 0.0

    def on_train_batch_end(self, trainer: Trainer, stage: Any, outputs: Any, batch: Any, batch_index: int) -> None:
        """Reads the clock at the two ends, once the device is idle."""
        if trainer.global_step in (self.first, self.last) and (batch_index + 1) % ACCUMULATE == 0:
            synchronize(trainer.strategy.root_device.type)
            self.seconds = time.perf_counter() - self.seconds


def findings(settings: Settings, preset: str) -> Findings:
    """Yields tokens per second by both clocks over the second half of a training; an error if they differ."""
    half = settings.steps // 2
    words = f"trainer.accumulate={ACCUMULATE}", f"trainer.max_steps={2 * half}"
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        folder = Path(name)
        save_tokenizer(folder / "tokenizer")
        experiment = experiment_of(settings, preset, words, folder)
        with init_process_group(experiment.trainer):
            stage = with_random_weights(experiment, settings.device)
            window, clock = LogWindow(half), WallClock(half, 2 * half)
            trainer = build_trainer(experiment.trainer, folder, [], [window, clock])
            trainer.strategy.teardown = lambda: None  # type: ignore[method-assign]  # as in training.py
            trainer.fit(stage, train_dataloaders=SyntheticBatches(stage, settings.rows, 2 * half * ACCUMULATE))
    tokens = half * ACCUMULATE * settings.rows * experiment.data.config.sequence_length
    by_clock, logged = tokens / clock.seconds, window.tokens_per_second[-1]
    difference = abs(logged - by_clock) / by_clock
    wrong = (
        {"error": f"logged {logged:,.0f} tokens/s, the clock shows {by_clock:,.0f}"} if difference > TOLERANCE else {}
    )
    yield {
        "case": f"{preset}, {ACCUMULATE} batches a step", "logged_tokens_per_second": logged,
        "tokens_per_second": by_clock, "difference": difference, **wrong,
    }  # fmt: skip
