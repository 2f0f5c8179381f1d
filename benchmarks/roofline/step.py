"""The predicted time of an optimiser step: micro-batches, communication between ranks, and the update."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from benchmarks.roofline.device import Ceilings, total
from benchmarks.roofline.fuse import fused
from benchmarks.roofline.operations import Operation, Recorder
from benchmarks.roofline.trace import LANGUAGE_MODEL, Way, build, trace, with_layers
from fvl_lightning.core.experiment import REPEATED, ExperimentConfig
from fvl_lightning.profiling.batch_shape import BatchShape
from fvl_lightning.profiling.fake_step import fake_tensors
from fvl_lightning.profiling.flops import estimate_flops
from fvl_lightning.profiling.memory import count_shards, estimate_memory
from fvl_lightning.stages.base import Stage
from fvl_lightning.training.components import blocks

DOCUMENTS = 2
"""Documents of a packed row, all of the same length."""
HOST_SECONDS = 390e-6
"""Host time that torch's AdamW takes for each sharded tensor, one after the other, as measured on a CPU."""


@dataclass(frozen=True)
class Switches:
    """The changes to a step, all off at first."""

    by_document: bool = False
    bfloat16_parameters: bool = False
    narrow_frozen: bool = False
    own_units: bool = False
    fused_update: bool = False
    head_once: bool = False
    keep_products: bool = False
    keep_activations: bool = False
    compiled: bool = False
    cudnn: bool = False


@dataclass(frozen=True)
class Prediction:
    """Times of one rank in seconds."""

    compute: float
    """Forward and backward pass of all micro-batches of a step, with copies of gathered parameters."""
    waiting: float
    """Communication that is not hidden behind the computation."""
    update: float
    kinds: dict[str, float]
    """Shares of `compute` by kind of operation."""

    @property
    def step(self) -> float:
        """The whole step."""
        return self.compute + self.waiting + self.update


class Predicted:
    """A preset on a device; its traces are made once.

    Args:
        experiment: with batch size, accumulation and ranks.
        device: the ceilings.
        packed: whether rows are packed.
    """

    def __init__(self, experiment: ExperimentConfig, device: Ceilings, packed: bool = False) -> None:
        self.experiment, self.device, self.packed = experiment, device, packed
        self.rows = experiment.trainer.batch_size
        self.stage = build(experiment)
        self.layers = len(blocks(self.stage.model, LANGUAGE_MODEL))
        self.traced = with_layers(experiment, 2)
        self._stage = build(self.traced)
        self._traces: dict[Way, list[Operation]] = {}

    @cached_property
    def flops(self) -> int:
        """Operations of a step on one rank, as the kit counts them: recomputed ones once."""
        two, one = _count(self.traced, self._stage), _count(with_layers(self.experiment, 1))
        return (one + (self.layers - 1) * (two - one)) * self.rows * self.experiment.trainer.accumulate

    @property
    def length(self) -> int:
        """Tokens of a row."""
        assert self.experiment.data is not None
        return int(self.experiment.data.config.sequence_length)

    @property
    def tokens(self) -> int:
        """Tokens of a step on one rank."""
        return self.rows * self.length * self.experiment.trainer.accumulate

    def fits(self, share: float = 0.9, **trainer: Any) -> bool:
        """Returns whether a share of the device's memory holds a step, by the kit's estimate; `trainer` has changes."""
        kept = replace(self.experiment, trainer=replace(self.experiment.trainer, **trainer))
        shape = BatchShape(self.rows, self.length, self.rows)
        return estimate_memory(kept, self.stage.model, self.stage.trainable, shape).peak <= share * self.device.memory

    def predict(self, switches: Switches) -> Prediction:
        """Returns the time of a step with these changes."""
        operations = self._operations(switches)
        if switches.compiled:
            operations = fused(operations, LANGUAGE_MODEL)
        repeats = self.experiment.trainer.accumulate
        copies, hidden, exposed = self._communication(switches)
        compute = total(operations, self.device, switches.cudnn) + copies
        kinds = {"copies": copies / compute}
        for kind in dict.fromkeys(operation.kind for operation in operations):
            same = [operation for operation in operations if operation.kind == kind]
            kinds[kind] = total(same, self.device, switches.cudnn) / compute
        waiting = max(0.0, hidden - compute) + exposed
        return Prediction(repeats * compute, repeats * waiting, self._update(switches), kinds)

    def _operations(self, switches: Switches) -> list[Operation]:
        way = Way(
            bfloat16_parameters=switches.bfloat16_parameters,
            narrow_frozen=switches.narrow_frozen,
            kept="all" if switches.keep_activations else "products" if switches.keep_products else "inputs",
            masked=self.packed and not switches.by_document,
            head_twice=not switches.head_once,
        )
        if way not in self._traces:
            self._traces[way] = trace(self.traced, self._stage, self.rows, way, self.layers)
        if self.packed and switches.by_document:
            return [_by_document(operation) for operation in self._traces[way]]
        return self._traces[way]

    def _communication(self, switches: Switches) -> tuple[float, float, float]:
        """Returns seconds of a micro-batch: copies by the device, transfers behind computation, and transfers alone."""
        settings, ranks, model = self.experiment.trainer, count_shards(self.experiment), self.stage.model
        if ranks == 1 and not switches.bfloat16_parameters:
            return self._accumulation(1), 0.0, 0.0
        width, gathers = 2 if switches.bfloat16_parameters else 4, 1 + settings.reshard_after_forward
        every, trained = _elements(model.parameters()), _elements(model.parameters(), trained=True)
        cast = (4 + width) / ranks if width < 4 else 0.0
        traffic = gathers * every * (cast + 2 * width) + trained * (width + 4)
        between_machines = settings.nodes > 1 and settings.strategy == "fsdp"
        sent = (ranks - 1) / ranks / (self.device.network if between_machines else self.device.link)
        inside = {one for name in REPEATED for block in blocks(model, name) for one in block.parameters()}
        alone = [one for one in model.parameters() if one not in inside]  # comes first and ends last: nothing hides it
        times = 1 if switches.own_units else gathers
        exposed = sent * (times * width * _elements(alone) + 4 * _elements(alone, trained=True))
        blocks_only = every - _elements(alone), trained - _elements(alone, trained=True)
        hidden = sent * (gathers * width * blocks_only[0] + 4 * blocks_only[1])
        return traffic / self.device.bandwidth + self._accumulation(ranks), hidden, exposed

    def _accumulation(self, ranks: int) -> float:
        """Returns the seconds in which a micro-batch adds its gradients to those of the earlier ones of its step."""
        count = self.experiment.trainer.accumulate
        trained = _elements(self.stage.model.parameters(), trained=True)
        return (count - 1) / count * 12 * trained / ranks / self.device.bandwidth

    def _update(self, switches: Switches) -> float:
        """Returns the seconds of scaling, clipping and AdamW; a loop over tensors takes at least its host's time."""
        ranks = count_shards(self.experiment)
        trained = [one for one in self.stage.model.parameters() if one.requires_grad]
        traced = update(sum(map(torch.numel, trained)) // ranks, switches.fused_update)
        on_device = total(traced, self.device)
        return on_device if ranks == 1 or switches.fused_update else max(on_device, HOST_SECONDS * len(trained))


def update(elements: int, fused_update: bool) -> list[Operation]:
    """Returns the operations of an update of so many parameters: scaling, clipping and AdamW."""
    with fake_tensors(), Recorder() as recorder:
        parameter = nn.Parameter(torch.empty(elements))
        parameter.grad = torch.empty(elements)
        how = {"fused": True} if fused_update else {"foreach": True}
        optimizer = torch.optim.AdamW([parameter], lr=1e-5, weight_decay=0.0, **how)
        optimizer.step()  # makes the moments
        recorder.operations.clear()
        torch._foreach_mul_([parameter.grad], 1.0)
        nn.utils.clip_grad_norm_([parameter], 1.0)
        optimizer.step()
    return recorder.operations


def _count(experiment: ExperimentConfig, stage: Stage | None = None) -> int:
    """Returns the operations of a row, forward and backward."""
    assert experiment.data is not None
    stage = stage or build(experiment)
    plain = replace(experiment, trainer=replace(experiment.trainer, checkpoint_activations=[]))
    shape = BatchShape(1, experiment.data.config.sequence_length, 1)
    return estimate_flops(plain, stage.model, stage.trainable, shape).training


def _by_document(operation: Operation) -> Operation:
    """Returns causal attention of the language model as it is if a row has DOCUMENTS documents."""
    if operation.kind == "attention" and operation.owner.startswith(LANGUAGE_MODEL):
        return replace(operation, flops=operation.flops // DOCUMENTS)
    return operation


def _elements(parameters: Iterable[nn.Parameter], trained: bool = False) -> int:
    return sum(one.numel() for one in parameters if one.requires_grad or not trained)
