"""An estimate of the memory of a training step on each rank, without a device.

Parameters, gradients and optimiser state are counted by their shapes. What a step allocates is counted in a fake step
with forward pass, backward pass and update. It therefore follows the code: what autograd saves, what is recomputed, the
loss in chunks, autocast's copies of the weights.

    stage = build_stage(experiment, device="meta")
    stage.adapt(Path())
    estimate = estimate_memory(experiment, stage.model, stage.trainable)  # shape=BatchShape(rows, tokens, images)
    estimate.peak, estimate.activations["language_model"]

Assumptions, where CUDA may differ: a packed row has three samples and the attention of a training on this machine; a
fused attention kernel saves queries, keys, values, output and one number per row, and a mask in full; autocast leaves
the same operations in float32 as on a CPU. Under FSDP2 the parameters of the root and of two blocks are gathered at a
time, in the type of the computation, and those of the root or of the token table twice while it is gathered itself. The
gradients of a block are whole until its backward pass ends, those of the root and of the table until the whole backward
pass ends; while they are sent there is a second copy, in float32. Not counted: the CUDA context, the workspaces of NCCL
and cuBLAS, and fragmentation.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fvl_lightning.core.experiment import COMPONENTS, ExperimentConfig
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration
from fvl_lightning.profiling.batch_shape import BatchShape, compute_loss, worst_batch
from fvl_lightning.profiling.fake_step import (
    Allocations,
    fake_tensors,
    recompute_activations,
    track_owners,
    without_values,
)
from fvl_lightning.training.components import COMPONENT_OF_CHILD, blocks, component_of, set_modes, sharding_units
from fvl_lightning.training.lora import narrowed_layers, quantizable_layers
from fvl_lightning.training.muon import MAX_GATHERED_ELEMENTS
from fvl_lightning.training.optimizer import build_optimizer

NF4_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)
"""Bytes per element in NF4: half a byte, 1 byte per 64 elements for their scale, and 4 bytes per 256 scales."""
COUNT_BYTES = 4
"""Bytes of the step count that an optimiser holds for a parameter."""
MUON_COPIES = 6
"""Copies of a stack of matrices that Muon holds at once: momenta, stack, x, gram, product, update."""

Sizes = dict[str, int]
"""Bytes by component (encoder, fusion, projector, language_model)."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each rank; if ranks differ, those of rank 0.

    `activations` are those at the end of the forward pass, by the component that computed them; the head, the loss and
    the token embeddings belong to the language model. `communication` is the size of DDP's buckets or of FSDP2's
    gathered units. `peak` may be less than the sum, since activations are freed while gradients are computed, or more,
    because of temporary tensors. With `trainer.cpu_offload` parameters, gradients and optimiser state are in main
    memory, and `peak` does not include them.
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
        """The bytes between two steps: parameters and optimiser state."""
        return sum(self.parameters.values()) + sum(self.optimizer.values())


def estimate_memory(
    experiment: ExperimentConfig, model: nn.Module, trainable: Mapping[str, str], shape: BatchShape | None = None
) -> MemoryEstimate:
    """Estimates the memory of training `experiment` on each rank.

    Args:
        experiment: its `trainer` sets strategy, devices, nodes, precision and activation checkpointing.
        model: the model of a stage after `adapt`, on any device; the meta device is the fastest. With
            `lora.quantization` it must have the adapters of a model that is not quantised. It is left in train mode.
        trainable: {component: frozen, full or lora}, as in the stage.
        shape: the shape of the batches; None for the largest possible.
    """
    shape = shape or worst_batch(experiment, model)
    set_modes(model, trainable)
    shard_count = count_shards(experiment)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = _by_component({name: _local_bytes(parameter, shard_count) for name, parameter in trained.items()})
    parameters, exchanged = _parameter_bytes(experiment, model, shard_count), _exchanged_bytes(experiment, model)
    narrow = set(model.parameters()) if _gathered_in_bfloat16(experiment) else _quantized(experiment, model)
    with fake_tensors():
        with without_values(model, _quantized(experiment, model)):
            step, optimizer = _measure_update(experiment, model, shard_count)
        with without_values(model, narrow):
            passes = _measure_passes(experiment, model, shape)
    held, all_gradients = sum(parameters.values()) + sum(optimizer.values()), sum(gradients.values())
    if experiment.trainer.cpu_offload:
        held = all_gradients = step = 0
    kept_gradients = all_gradients if experiment.trainer.accumulate > 1 else 0
    moments = (
        kept_gradients + exchanged.at_the_start,
        kept_gradients + exchanged.within + passes.peak,
        all_gradients + exchanged.at_the_end,
        all_gradients + step,
    )
    peak = held + max(moments)
    return MemoryEstimate(shape, parameters, gradients, optimizer, passes.activations, exchanged.within, peak)


def checkpoint_bytes(experiment: ExperimentConfig, model: nn.Module) -> int:
    """Returns the bytes of a checkpoint: trained parameters and optimiser state."""
    groups = build_optimizer(model, experiment.optimizer).param_groups
    return sum((2 if group["muon"] else 3) * _bytes(group["params"]) for group in groups)


def count_shards(experiment: ExperimentConfig) -> int:
    """Returns the number of ranks over which a parameter is sharded."""
    trainer = experiment.trainer
    return {"fsdp": trainer.world_size, "hsdp": trainer.devices}.get(trainer.strategy, 1)


@dataclass(frozen=True)
class _Passes:
    activations: Sizes
    peak: int


def _measure_passes(experiment: ExperimentConfig, model: nn.Module, shape: BatchShape) -> _Passes:
    """Measures a forward and a backward pass of one batch.

    The peak includes gradients as they are computed, except those that exist before (accumulation) or are sharded at
    once (the blocks of FSDP2) or moved into buckets (DDP).
    """
    trainer, allocations = experiment.trainer, Allocations()
    allocations.ignore([*model.parameters(), *model.buffers()])
    otherwise = "language_model" if isinstance(model, FlorenceVLForConditionalGeneration) else "encoder"
    uncounted: Iterable[nn.Parameter] = model.parameters() if trainer.accumulate > 1 else ()
    if _in_buckets(experiment):
        uncounted = model.parameters()
    if trainer.sharded:
        uncounted = {parameter for block in sharding_units(model)[0] for parameter in block.parameters()}
    for parameter in uncounted:
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_drop_gradient)
    repeated = [block for name in trainer.checkpoint_activations for block in blocks(model, name)]
    with recompute_activations(repeated, trainer.checkpoint_keep), allocations:
        with track_owners(model, allocations, otherwise, COMPONENT_OF_CHILD), _autocast(experiment):
            loss = compute_loss(experiment, model, shape)
        activations = {name: allocations.by_owner[name] for name in COMPONENTS}
        loss.backward()
    return _Passes(activations, allocations.peak)


def _measure_update(experiment: ExperimentConfig, model: nn.Module, shard_count: int) -> tuple[int, Sizes]:
    """Returns the bytes that an update allocates temporarily, and the optimiser state by component."""
    optimizer = build_optimizer(model, experiment.optimizer)
    gathered, state = 0, dict.fromkeys(COMPONENTS, 0)
    for group in optimizer.param_groups:
        params, component = group["params"], group["name"].split("/")[0]
        moments = 1 if group["muon"] else 2
        state[component] += sum(moments * _local_bytes(parameter, shard_count) + COUNT_BYTES for parameter in params)
        if group["muon"] and shard_count > 1:
            gathered = max(gathered, *_gathered_matrices(params, shard_count))
        group["params"] = [_local_part(parameter, shard_count) for parameter in params]
    allocations = Allocations()
    allocations.ignore(t for group in optimizer.param_groups for p in group["params"] for t in (p, p.grad))
    with allocations:
        optimizer.step()  # creates the state
        state_bytes = allocations.live
        allocations.restart()
        optimizer.step()
    return max(allocations.peak - state_bytes, gathered), state


def _parameter_bytes(experiment: ExperimentConfig, model: nn.Module, shard_count: int) -> Sizes:
    """Returns the bytes of parameters and buffers by component."""
    narrow = _quantized(experiment, model)
    size = 2 if experiment.lora is not None and experiment.lora.quantization == "bfloat16" else NF4_BYTES
    sizes = {
        name: math.ceil(parameter.numel() * size) if parameter in narrow else _local_bytes(parameter, shard_count)
        for name, parameter in model.named_parameters()
    }
    return _by_component(sizes | {name: buffer.nbytes for name, buffer in model.named_buffers()})


@dataclass(frozen=True)
class _Exchanged:
    """Bytes that ranks gather and send: before the forward pass, while activations are held, and after backward."""

    at_the_start: int
    within: int
    at_the_end: int


def _exchanged_bytes(experiment: ExperimentConfig, model: nn.Module) -> _Exchanged:
    """Returns the bytes of DDP's buckets, or of the units that FSDP2 gathers and the gradients that it sends."""
    trainer = experiment.trainer
    if not trainer.sharded:
        buckets = _gradient_bytes(model.parameters()) if _in_buckets(experiment) else 0
        return _Exchanged(0, buckets, buckets if trainer.accumulate > 1 else 0)
    share = 0.5 if _gathered_in_bfloat16(experiment) else 1.0
    blocks, tables = ([list(unit.parameters()) for unit in units] for units in sharding_units(model))
    inside = {parameter for unit in [*blocks, *tables] for parameter in unit}
    root = [parameter for parameter in model.parameters() if parameter not in inside]
    whole, table, sizes = _bytes(root), sum(map(_bytes, tables)), list(map(_bytes, blocks))
    kept = 2 * max(sizes, default=0) if trainer.reshard_after_forward else sum(sizes) + table
    unsent = max(map(_gradient_bytes, blocks), default=0)
    last = [*map(_gradient_bytes, tables), _gradient_bytes(root)]
    return _Exchanged(
        int(share * max(2 * whole, whole + 2 * table)),
        int(share * (whole + kept)) + unsent,
        int(share * (whole + sum(last))) + max(last),
    )


def _in_buckets(experiment: ExperimentConfig) -> bool:
    """Returns whether DDP sends gradients in buckets, which then hold them; those of earlier batches lie elsewhere."""
    return not experiment.trainer.sharded and experiment.trainer.world_size > 1


def _gathered_in_bfloat16(experiment: ExperimentConfig) -> bool:
    """Returns whether the parameters that are computed with, and their gradients, are bfloat16 (see `shard`)."""
    return experiment.trainer.sharded and experiment.trainer.precision == "bf16-mixed"


def _gathered_matrices(matrices: list[nn.Parameter], shard_count: int) -> Iterator[int]:
    """Yields, for every shape, the bytes of the stacks of whole matrices that Muon holds on a rank."""
    for shape, count in Counter(matrix.shape for matrix in matrices).items():
        size, owned = math.prod(shape), math.ceil(count / shard_count)
        yield MUON_COPIES * matrices[0].element_size() * size * min(owned, max(1, MAX_GATHERED_ELEMENTS // size))


def _quantized(experiment: ExperimentConfig, model: nn.Module) -> set[Tensor]:
    """Returns the weights that the run will hold in NF4 or in bfloat16."""
    if experiment.lora is None or experiment.lora.quantization is None:
        return set()
    if experiment.lora.quantization == "bfloat16":
        return {layer.weight for layer in narrowed_layers(model)}
    return {layer.weight for layer in quantizable_layers(model).values()}


def _autocast(experiment: ExperimentConfig) -> AbstractContextManager[Any]:
    """Returns the run's autocast; a layer in NF4 computes in bfloat16 in any case."""
    if experiment.trainer.precision == "bf16-mixed" or (experiment.lora and experiment.lora.quantization):
        return torch.autocast("cpu", torch.bfloat16, cache_enabled=False)  # as in Lightning
    return nullcontext()


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _local_part(parameter: Tensor, shard_count: int) -> nn.Parameter:
    """Returns rank 0's shard of a parameter, with a gradient."""
    shape = (math.ceil(parameter.shape[0] / shard_count), *parameter.shape[1:]) if parameter.ndim else parameter.shape
    part = nn.Parameter(torch.empty(shape, dtype=parameter.dtype))
    part.grad = torch.empty_like(part)
    return part


def _local_bytes(parameter: Tensor, shard_count: int) -> int:
    """Returns the bytes of rank 0's shard; FSDP2 splits the first dimension, and rank 0 has the largest shard."""
    rows = parameter.shape[0] if parameter.ndim else 1
    return math.ceil(rows / shard_count) * (parameter.nbytes // max(1, rows))


def _by_component(sizes: Mapping[str, int]) -> Sizes:
    found = dict.fromkeys(COMPONENTS, 0)
    for name, size in sizes.items():
        found[component_of(name)] += size
    return found


def _bytes(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.nbytes for parameter in parameters)


def _gradient_bytes(parameters: Iterable[Tensor]) -> int:
    return _bytes(parameter for parameter in parameters if parameter.requires_grad)
