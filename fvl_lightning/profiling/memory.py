"""Memory of a training step on each rank, by arithmetic: no values, no device.

What is held (parameters, gradients, the optimiser's state) is counted from shapes. What a step allocates is counted in
a rehearsal of forward pass, backward pass and update on shapes, so that it follows the code: what autograd keeps, what
is computed again, the loss in chunks, autocast's copies of the weights.

    stage = build_stage(experiment, device="meta")
    stage.adapt(Path())
    estimate = estimate_memory(experiment, stage.model, stage.trainable)  # shape=BatchShape(rows, tokens, images)
    estimate.peak, estimate.activations["language_model"]

Assumed, where CUDA may differ: attention by a fused kernel, which keeps queries, keys, values, output and a number per
row (a mask beside them is held in full); the operations that autocast leaves in float32 are those of a CPU. Under FSDP2
the parameters of the root and of two blocks are gathered at a time, the root's twice while it is gathered itself; a
block's gradients are whole until it is done, the root's until the backward pass is, and twice while they are sent. Not
counted: the CUDA context, NCCL's and cuBLAS's workspaces, and what the allocator cannot use since it lies in pieces.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fvl_lightning.core.experiment import COMPONENTS, REPEATED, ExperimentConfig
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration
from fvl_lightning.profiling.batch_shape import BatchShape, loss_of, worst_batch
from fvl_lightning.profiling.fake_step import Allocations, owners_told, rehearsed, without_values
from fvl_lightning.training.components import COMPONENT_OF_CHILD, blocks, component_of, set_modes
from fvl_lightning.training.distributed.block_transforms import checkpoint_activations
from fvl_lightning.training.lora import quantizable_layers
from fvl_lightning.training.muon import MAX_GATHERED_ELEMENTS
from fvl_lightning.training.optimizer import build_optimizer

NF4_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)
"""Of an element in NF4: half a byte, a byte per 64 for their scale, and 4 per 256 of those for theirs."""
COUNT_BYTES = 4
"""Of a parameter's steps, which an optimiser counts."""
ORTHOGONALIZING = 6
"""Copies of a stack of matrices that Muon's iteration holds at once: momenta, stack, x, gram, product, update."""

Sizes = dict[str, int]
"""Bytes by component (encoder, fusion, projector, language_model)."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each rank, on the first where they differ.

    `activations` are those at the end of the forward pass, by the component whose pass has made them; the head, the
    loss and what embeds the tokens count as the language model's. `communication` is what DDP's buckets or FSDP2's
    gathered units take. `peak` is less than the sum of all, since activations go while gradients come, or more, by
    what a computation holds for itself; with `trainer.cpu_offload` the first three are in main memory, and not in it.
    """

    shape: BatchShape
    parameters: Sizes
    gradients: Sizes
    optimizer: Sizes
    activations: Sizes
    communication: int
    peak: int

    @property
    def held(self) -> int:
        """Between two steps: parameters and the optimiser's state."""
        return sum(self.parameters.values()) + sum(self.optimizer.values())


def estimate_memory(
    experiment: ExperimentConfig, model: nn.Module, trainable: Mapping[str, str], shape: BatchShape | None = None
) -> MemoryEstimate:
    """What training `experiment` takes on each rank.

    Args:
        experiment: its `trainer` has strategy, devices, nodes, precision and activation checkpointing.
        model: that of a stage after `adapt`, on any device (of `stage = build_stage(experiment, "meta")` it takes
            seconds): frozen as it trains, and, with `lora.quantization`, adapted as if that were null. It is left in
            train mode.
        trainable: the stage's: frozen, full or lora by component.
        shape: of the batches; None for the largest there can be.
    """
    shape = shape or worst_batch(experiment, model)
    set_modes(model, trainable)
    parts = shards(experiment)
    learning = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = _by_component({name: _local_bytes(parameter, parts) for name, parameter in learning.items()})
    parameters, exchanged = _parameter_bytes(experiment, model, parts), _exchanged(experiment, model)
    with rehearsed(), without_values(model, _quantized(experiment, model)):
        step, optimizer = _rehearse_update(experiment, model, parts)
        passes = _rehearse_passes(experiment, model, shape)
    held, all_gradients = sum(parameters.values()) + sum(optimizer.values()), sum(gradients.values())
    if experiment.trainer.cpu_offload:
        held = all_gradients = step = 0
    kept_gradients = all_gradients if experiment.trainer.accumulate > 1 else 0
    moments = (
        kept_gradients + exchanged.within + passes.peak,
        all_gradients + exchanged.at_the_end,
        all_gradients + step,
    )
    peak = held + max(moments)
    return MemoryEstimate(shape, parameters, gradients, optimizer, passes.activations, exchanged.within, peak)


def checkpoint_bytes(experiment: ExperimentConfig, model: nn.Module) -> int:
    """Of a checkpoint: what learns, and the optimiser's state."""
    groups = build_optimizer(model, experiment.optimizer).param_groups
    return sum((2 if group["muon"] else 3) * _bytes(group["params"]) for group in groups)


def shards(experiment: ExperimentConfig) -> int:
    """Over how many ranks a parameter is split."""
    trainer = experiment.trainer
    return {"fsdp": trainer.world_size, "hsdp": trainer.devices}.get(trainer.strategy, 1)


@dataclass(frozen=True)
class _Passes:
    activations: Sizes
    peak: int


def _rehearse_passes(experiment: ExperimentConfig, model: nn.Module, shape: BatchShape) -> _Passes:
    """Forward and backward pass of one batch.

    The peak has the gradients as they come, but where they are there before (accumulation) or leave at once (those of
    FSDP2's blocks).
    """
    trainer, allocations = experiment.trainer, Allocations()
    allocations.ignore([*model.parameters(), *model.buffers()])
    otherwise = "language_model" if isinstance(model, FlorenceVLForConditionalGeneration) else "encoder"
    leaving: Iterable[nn.Parameter] = model.parameters() if trainer.accumulate > 1 else ()
    if trainer.sharded:
        leaving = {parameter for unit in _units(model) for parameter in unit}
    for parameter in leaving:
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_drop_gradient)
    repeated = [block for name in trainer.checkpoint_activations for block in blocks(model, name)]
    with _recomputed(repeated), allocations:
        with owners_told(model, allocations, otherwise, COMPONENT_OF_CHILD), _precision(experiment):
            loss = loss_of(experiment, model, shape)
        activations = {name: allocations.by_owner[name] for name in COMPONENTS}
        loss.backward()
    return _Passes(activations, allocations.peak)


def _rehearse_update(experiment: ExperimentConfig, model: nn.Module, parts: int) -> tuple[int, Sizes]:
    """What an update allocates for itself, and the optimiser's state by component."""
    optimizer = build_optimizer(model, experiment.optimizer)
    gathered, state = 0, dict.fromkeys(COMPONENTS, 0)
    for group in optimizer.param_groups:
        params, component = group["params"], group["name"].split("/")[0]
        moments = 1 if group["muon"] else 2
        state[component] += sum(moments * _local_bytes(parameter, parts) + COUNT_BYTES for parameter in params)
        if group["muon"] and parts > 1:
            gathered = max(gathered, *_gathered_matrices(params))
        group["foreach"] = experiment.trainer.accelerator != "cpu" and parts == 1  # as torch chooses
        if not group["foreach"] and not group["muon"]:  # one by one, of which the largest takes most
            params = [max(params, key=torch.numel)]
        group["params"] = [_part_of(parameter, parts) for parameter in params]
    allocations = Allocations()
    allocations.ignore(t for group in optimizer.param_groups for p in group["params"] for t in (p, p.grad))
    with allocations:
        optimizer.step()  # the first one makes the state
        held = allocations.live
        allocations.restart()
        optimizer.step()
    return max(allocations.peak - held, gathered), state


def _parameter_bytes(experiment: ExperimentConfig, model: nn.Module, parts: int) -> Sizes:
    """Parameters and buffers by component."""
    narrow = _quantized(experiment, model)
    sizes = {
        name: math.ceil(parameter.numel() * NF4_BYTES) if parameter in narrow else _local_bytes(parameter, parts)
        for name, parameter in model.named_parameters()
    }
    return _by_component(sizes | {name: buffer.nbytes for name, buffer in model.named_buffers()})


@dataclass(frozen=True)
class _Exchanged:
    """Bytes of what ranks gather and send: while activations are held, and when the backward pass ends."""

    within: int
    at_the_end: int


def _exchanged(experiment: ExperimentConfig, model: nn.Module) -> _Exchanged:
    """DDP's buckets, or the units that FSDP2 gathers and the gradients it sends."""
    trainer = experiment.trainer
    if not trainer.sharded:
        buckets = _learning_bytes(model.parameters()) if trainer.world_size > 1 else 0
        return _Exchanged(buckets, buckets)
    units = _units(model)
    inside = {parameter for unit in units for parameter in unit}
    root = [parameter for parameter in model.parameters() if parameter not in inside]
    whole, sizes = _bytes(root), [_bytes(unit) for unit in units]
    kept = 2 * max(sizes, default=0) if trainer.reshard_after_forward else sum(sizes)
    unsent = max(map(_learning_bytes, units), default=0)
    return _Exchanged(max(2 * whole, whole + kept + unsent), whole + 2 * _learning_bytes(root))


def _units(model: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of each block that FSDP2 gathers as one; all others are the root's."""
    return [list(block.parameters()) for name in REPEATED for block in blocks(model, name)]


def _gathered_matrices(matrices: list[nn.Parameter]) -> Iterator[int]:
    """Bytes of the stacks of whole matrices that Muon's iteration holds, for every shape."""
    for shape, count in Counter(matrix.shape for matrix in matrices).items():
        size = math.prod(shape)
        yield ORTHOGONALIZING * matrices[0].element_size() * size * min(count, max(1, MAX_GATHERED_ELEMENTS // size))


def _quantized(experiment: ExperimentConfig, model: nn.Module) -> set[Tensor]:
    """The weights that the run will hold in NF4."""
    if experiment.lora is None or experiment.lora.quantization is None:
        return set()
    return {layer.weight for layer in quantizable_layers(model).values()}


def _precision(experiment: ExperimentConfig) -> AbstractContextManager[Any]:
    """Autocast where the run has it; a layer in NF4 computes in bfloat16 by itself."""
    if experiment.trainer.precision == "bf16-mixed" or (experiment.lora and experiment.lora.quantization):
        return torch.autocast("cpu", torch.bfloat16, cache_enabled=False)  # as in Lightning
    return nullcontext()


@contextmanager
def _recomputed(modules: list[nn.Module]) -> Iterator[None]:
    """Within it these modules keep their inputs alone; those that do so already are left alone."""
    chosen = [module for module in modules if "forward" not in vars(module)]
    checkpoint_activations(chosen)
    try:
        yield
    finally:
        for module in chosen:
            del module.forward


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _part_of(parameter: Tensor, parts: int) -> nn.Parameter:
    """What the first of `parts` ranks holds, with a gradient."""
    shape = (math.ceil(parameter.shape[0] / parts), *parameter.shape[1:]) if parameter.ndim else parameter.shape
    part = nn.Parameter(torch.empty(shape, dtype=parameter.dtype))
    part.grad = torch.empty_like(part)
    return part


def _local_bytes(parameter: Tensor, parts: int) -> int:
    """FSDP2 splits the first dimension; the first rank's part is never the smaller one."""
    rows = parameter.shape[0] if parameter.ndim else 1
    return math.ceil(rows / parts) * (parameter.nbytes // max(1, rows))


def _by_component(sizes: Mapping[str, int]) -> Sizes:
    found = dict.fromkeys(COMPONENTS, 0)
    for name, size in sizes.items():
        found[component_of(name)] += size
    return found


def _bytes(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.nbytes for parameter in parameters)


def _learning_bytes(parameters: Iterable[Tensor]) -> int:
    return _bytes(parameter for parameter in parameters if parameter.requires_grad)
