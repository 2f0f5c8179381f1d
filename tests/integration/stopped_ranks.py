"""One rank of a training in two processes that meets trouble on rank 1 alone: `torchrun stopped_ranks.py OUT`.

Rank 1's loss is no number in the second step and a spike in the third; in the middle of the fourth it is sent SIGTERM.
Writes OUT/rank<r>.json.
"""

import dataclasses
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer

from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.modeling.loss import TokenLoss
from fvl_lightning.runs.setup import data_context, prepare_data
from fvl_lightning.stages import update_guard as guard
from fvl_lightning.stages.finetune import FinetuneStage
from fvl_lightning.tracking.metrics_log import JsonlLogger
from fvl_lightning.training.checkpointing.callback import CheckpointCallback
from fvl_lightning.training.checkpointing.last_and_previous import CheckpointFiles
from fvl_lightning.training.fault_tolerance.signals import StopSignals
from tests.conftest import TINY
from tests.tiny_models import snapshot

RANK = int(os.environ["RANK"])
STEPS = 9


class Trouble(Callback):
    """What happens to rank 1, and what both ranks are afterwards."""

    def __init__(self) -> None:
        self.keys: list[list[str]] = []
        self.unchanged: list[int] = []
        self._before: dict[str, Any] = {}

    def on_train_batch_start(self, trainer: Trainer, stage: Any, batch: Any, index: int) -> None:
        """A signal in the middle of the fourth step."""
        self.keys.append(list(batch.keys))
        self._before = snapshot(stage.model)
        if RANK == 1 and trainer.global_step == 3:
            signal.raise_signal(signal.SIGTERM)

    def on_train_batch_end(self, trainer: Trainer, stage: Any, *_: Any) -> None:
        """Notes the steps that changed nothing."""
        after = snapshot(stage.model)
        if all(torch.equal(self._before[name], after[name]) for name in after):
            self.unchanged.append(trainer.global_step)


class SpoiltStage(FinetuneStage):
    """Its second loss is no number on rank 1, and its third is far too large."""

    def compute(self, batch: Any) -> tuple[TokenLoss, dict[str, torch.Tensor]]:
        """As ever, but for those two."""
        loss, diagnostics = super().compute(batch)
        if RANK == 1 and self.global_step in (1, 2):
            loss = dataclasses.replace(loss, sum=loss.sum * (float("nan") if self.global_step == 1 else 1000.0))
        return loss, diagnostics


def main(folder: Path) -> None:
    """Trains this rank's part."""
    torch.set_num_threads(1)
    guard.MIN_UPDATES = 1
    words = (*TINY, "trainer.batch_size=4", "trainer.spike_threshold=50")
    experiment = load_config(ExperimentConfig, Path("experiments/demo/finetune.yaml"), words)
    data, stage = prepare_data(experiment), SpoiltStage.build(experiment)
    data.connect(replace(data_context(stage.model, stage.tokenizer, experiment), rank=RANK, world_size=2))
    trouble = Trouble()
    signals = StopSignals()
    checkpoints = CheckpointCallback(folder / "last.ckpt", 100, signals)
    with signals:
        trainer = Trainer(
            accelerator="cpu", devices=2, strategy="ddp", use_distributed_sampler=False, max_steps=STEPS, max_epochs=-1,
            val_check_interval=100, check_val_every_n_epoch=None, limit_val_batches=0,
            logger=[JsonlLogger(folder / f"rank{RANK}.jsonl")], enable_progress_bar=False, enable_model_summary=False,
            callbacks=[trouble, checkpoints], plugins=[CheckpointFiles()],
        )  # fmt: skip
        trainer.fit(stage, data)
    found = {
        "step": trainer.global_step,
        "stop": checkpoints.stop.name,
        "asked": signals.requested.name,
        "unchanged": trouble.unchanged,
        "keys": trouble.keys,
        "position": stage.position,
        "recent": stage.guard.recent,
    }
    (folder / f"rank{RANK}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
