"""The same few steps on one rank, on one rank in halves, and on two: `torchrun split_training.py OUT STEPS CASE...`.

Every global batch has four rows of unlike numbers of supervised tokens; the last two have no image, so that one rank of
two sees none. Rank 0 writes OUT/<case>.<split>.pt: losses, gradient norms and final weights.
"""

import dataclasses
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter

from fvl_lightning.core.types import Batch
from fvl_lightning.stages.base import Stage
from fvl_lightning.training.distributed.fsdp import local_shard
from tests.stages.fitting import STAGES, batches_of, build_stage, fit, split
from tests.tiny_models import IMAGE

LORA = {"encoder": "lora", "language_model": "lora"}
PLACES: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp", "devices": 2},
    "fsdp": {"strategy": "fsdp", "devices": 2},
    "hsdp": {"strategy": "hsdp", "devices": 2, "nodes": 2},
}
EVERY_BLOCK = {"checkpoint_activations": ["encoder", "language_model"]}


@dataclass
class Case:
    """A stage and how it trains; `splits` are the ways to run it in two processes."""

    stage: str = "pretrain"
    optimizer: str = "adamw"
    splits: tuple[str, ...] = ("ddp", "fsdp")
    trainable: dict[str, str] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    sparing: dict[str, Any] = field(default_factory=dict)
    """What changes memory alone, so that the one process it is compared with does without."""
    double: bool = True
    rows: int = 4
    """Samples of a step."""
    model: dict[str, Any] = field(default_factory=dict)
    """Components other than the tiny model's own, which make as many image tokens."""


EXACT = {f"{stage}_{name}": Case(stage, name) for stage in STAGES for name in ("adamw", "muon")}
"""Every stage with every optimiser, in float64."""
ROUNDED = {
    f"{stage}_{name}_float32": Case(stage, name, double=False)
    for stage, name in zip(STAGES, ("adamw", "muon", "muon", "adamw", "muon"), strict=True)
}
PROJECTORS = {
    "c_abstractor": Case(model={"projector": {"name": "c_abstractor", "rows": 2, "depth": 1}}),
    "resampler": Case(model={"projector": {"name": "resampler", "queries": 4, "depth": 1, "heads": 2}}),
    "per_source": Case(
        model={
            "fusion": "concat",
            "projector": {
                "name": "per_source",
                "projectors": {
                    "ocr": {"name": "pool", "factor": 1, "by": "attention", "heads": 2},
                    "default": {"name": "pixel_shuffle", "factor": 1},
                },
            },
        }
    ),
}
TWO_SOURCES = {"sources": ["davit", "ocr"]}
FUSIONS = {
    "deepstack": Case(model={"fusion": {"name": "deepstack"}, "encoder": TWO_SOURCES}),
    "internal": Case(model={"fusion": {"name": "internal"}, "encoder": TWO_SOURCES}, sparing=EVERY_BLOCK),
    "moe": Case(model={"fusion": {"name": "moe", "top": 1}}),
}
"""Features for inner layers, and sources that not every rank needs."""
CASES = {
    **EXACT,
    **ROUNDED,
    **PROJECTORS,
    **FUSIONS,
    "lora": Case("finetune", trainable=LORA),
    "probe_of_all": Case("alignment_probe", trainable={"encoder": "full", "language_model": "full"}),
    "kept": Case(optimizer="muon", splits=("fsdp",), sparing={"reshard_after_forward": False}),
    "recomputed": Case(sparing=EVERY_BLOCK),
    "recomputed_encoder": Case("encoder_pretrain", sparing={"checkpoint_activations": ["encoder"]}),
    "two_machines": Case(optimizer="muon", splits=("hsdp",)),
    "two_machines_accumulated": Case(splits=("hsdp",), sparing={"accumulate": 2}, rows=8),
    "bfloat16": Case(splits=("ddp",), trainer={"precision": "bf16-mixed"}, double=False),
    "gathered_in_bfloat16": Case(splits=("fsdp",), sparing={"precision": "bf16-mixed"}, double=False),
}


class Recorder(Callback):
    """Loss and gradient norm of every step, over all ranks."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.held: set[torch.dtype] = set()
        """Types of trained parameters, of their gradients and of what the optimiser has for them."""
        self._step = 0

    def on_before_zero_grad(self, trainer: Any, stage: Any, optimizer: Any) -> None:
        """Looks at what an update has read and written."""
        for parameter in (one for group in optimizer.param_groups for one in group["params"]):
            tensors = [parameter, parameter.grad, *optimizer.state[parameter].values()]
            self.held |= {tensor.dtype for tensor in tensors if tensor is not None}

    def on_train_batch_end(self, trainer: Any, stage: Any, *_: Any) -> None:
        """Reads the log where a step has ended."""
        if trainer.global_step > self._step:
            self._step = trainer.global_step
            values = stage.read_log()
            self.losses.append(values["train/loss"])
            self.norms.append(values["train/gradient_norm"])


@contextmanager
def exchanged() -> Iterator[dict[str, Any]]:
    """The types in which FSDP2 gathers parameters and sums gradients, and how often it sums them over replicas."""
    found: dict[str, Any] = {"gathered": set(), "summed": set(), "replica_sums": 0}
    all_reduce = torch.distributed.all_reduce

    def counted(tensor: torch.Tensor, *args: Any, **how: Any) -> Any:
        found["replica_sums"] += tensor.numel() > 16  # more than counts, losses and norms
        return all_reduce(tensor, *args, **how)

    with pytest.MonkeyPatch.context() as patched:
        for name, collective in {"gathered": DefaultAllGather, "summed": DefaultReduceScatter}.items():

            def noted(self: Any, *args: Any, name: str = name, call: Any = collective.__call__, **how: Any) -> Any:
                found[name].add(how["input_tensor"].dtype)
                return call(self, *args, **how)

            patched.setattr(collective, "__call__", noted)
        patched.setattr(torch.distributed, "all_reduce", counted)
        yield found


def global_batches(case: Case, count: int) -> list[Any]:
    """`count` batches, of which the second half is text alone where the stage can read such."""
    batches = batches_of(case.stage, count, case.rows)
    return [text_behind(batch) if isinstance(batch, Batch) else batch for batch in batches]


def text_behind(batch: Batch) -> Batch:
    """Without the images of the second half, and with words in their place."""
    assert batch.images is not None
    half = len(batch.keys) // 2
    token_ids = batch.token_ids.clone()
    token_ids[half:].masked_fill_(token_ids[half:] == IMAGE, 7)
    return dataclasses.replace(batch, token_ids=token_ids, images=batch.images[:half])


def stage_of(case: Case, strategy: str, steps: int, folder: Path, rank: int = 0) -> Stage:
    """The case's stage; shapes alone where a first rank has the weights."""
    where = PLACES.get(strategy, {})
    trainer = {"max_steps": steps, **where}
    trainer |= {"accumulate": 2 if strategy == "halves" else 1, **case.trainer}
    trainer |= {} if strategy == "whole" else case.sparing
    stage = build_stage(
        case.stage, folder,
        device="meta" if rank else "cpu",
        optimizer={"name": case.optimizer, "learning_rate": 0.01, "clip_norm": 0.1},
        trainable=case.trainable,
        trainer=trainer,
        **case.model,
    )  # fmt: skip
    stage.frozen_hash = "of the first rank"
    if case.trainable:
        stage.adapt(folder)
    if case.double:
        stage.model.double()
    return stage


def train(case: Case, strategy: str, steps: int, folder: Path, rank: int = 0) -> dict[str, Any] | None:
    """What came of it, on the first rank."""
    stage = stage_of(case, strategy, steps, folder, rank)
    world = stage.experiment.trainer.world_size
    batches = global_batches(case, steps)
    if case.double:
        batches = [dataclasses.replace(batch, images=batch.images.double()) for batch in batches]
    validation = batches[:1]
    if strategy != "whole":
        batches = split(batches, max(2, world * stage.experiment.trainer.accumulate))
    if world > 1:
        batches, validation = batches[rank::world], split(validation, world)[rank::world]
    recorder = Recorder()
    with exchanged() as types:
        fit(stage, batches, folder, [recorder], validation=validation)
    held = list(stage.model.state_dict().values())
    share = sum(local_shard(tensor).numel() for tensor in held) / sum(map(torch.numel, held))
    stage.gather()
    if rank:
        return None
    weights = {name: tensor.clone() for name, tensor in stage.model.state_dict().items()}
    loss = stage.last_validation_loss
    found = {"losses": recorder.losses, "norms": recorder.norms, "weights": weights, "validation": loss}
    return found | {"share": share, **types, "held": recorder.held}  # share: of the whole, what this rank holds


def main(out: Path, steps: int, names: list[str]) -> None:
    """Every split of every case, on this rank."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    if os.environ["WORLD_SIZE"] == "4":  # as if on two machines
        os.environ |= {"LOCAL_RANK": str(rank % 2), "GROUP_RANK": str(rank // 2)}
    for name in names:
        for strategy in CASES[name].splits:
            (out / f"rank{rank}").mkdir(exist_ok=True)
            found = train(CASES[name], strategy, steps, out / f"rank{rank}", rank)
            if found:
                torch.save(found, out / f"{name}.{strategy}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
