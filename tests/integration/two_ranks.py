"""One rank of a training in two processes: `torchrun two_ranks.py OUT STOP [CHECKPOINT]` in a furnished folder.

Writes to OUT/rank<r>.json the keys of every batch that was trained on and the position that was committed.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.utilities.types import OptimizerLRScheduler

from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.runs.setup import data_context, prepare_data
from fvl_lightning.stages.finetune import FinetuneStage
from tests.conftest import TINY

STEPS = 6
WORDS = (
    *TINY, "data.workers=2", "data.packing=best_fit", "data.sequence_length=160", "trainer.batch_size=2",
    "fusion=gated", "trainer.accumulate=2",
)  # fmt: skip


class ScheduledStage(FinetuneStage):
    """Asks Lightning how many steps there will be, which has it open the loader early."""

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """As ever, once the number is known."""
        assert self.trainer.estimated_stepping_batches == STEPS
        return super().configure_optimizers()


class Recorder(Callback):
    """Notes the keys of every batch; saves and stops after the step `stop`."""

    def __init__(self, folder: Path, stop: int) -> None:
        self.folder, self.stop = folder, stop
        self.keys: list[tuple[str, ...]] = []

    def on_train_batch_start(self, trainer: Trainer, stage: Any, batch: Any, index: int) -> None:
        """The batch that is trained on now, not one fetched ahead."""
        self.keys.append(batch.keys)

    def on_train_batch_end(self, trainer: Trainer, stage: Any, *_: Any) -> None:
        """Stops in the middle of an epoch."""
        if trainer.global_step == self.stop and not trainer.should_stop:
            trainer.save_checkpoint(self.folder / "last.ckpt")
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, stage: Any) -> None:
        """What this rank has seen."""
        found = {"keys": self.keys, "position": stage.position}
        (self.folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(found), encoding="utf-8")


def main(folder: Path, stop: int, checkpoint: Path | None) -> None:
    """Trains this rank's part."""
    torch.set_num_threads(1)
    experiment = load_config(ExperimentConfig, Path("experiments/demo/finetune.yaml"), WORDS)
    data, stage = prepare_data(experiment), ScheduledStage.build(experiment)
    position = torch.load(checkpoint, weights_only=True)["position"] if checkpoint else 0
    context = data_context(stage.model, stage.tokenizer, experiment, position)
    data.connect(replace(context, rank=int(os.environ["RANK"]), world_size=2))
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp", use_distributed_sampler=False, max_steps=STEPS, max_epochs=-1,
        accumulate_grad_batches=2, limit_val_batches=0, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, callbacks=[Recorder(folder, stop)],
    )  # fmt: skip
    trainer.fit(stage, data, ckpt_path=checkpoint, weights_only=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None)
