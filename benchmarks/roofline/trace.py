"""The operations of a preset's micro-batch: forward and backward pass of the kit's own code on fake tensors."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from benchmarks.roofline.operations import Operation, Recorder
from benchmarks.roofline.recomputed_loss import recomputed_token_loss
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.language_models.causal import read_model
from fvl_lightning.profiling.batch_shape import BatchShape, compute_loss
from fvl_lightning.profiling.fake_step import fake_tensors, recompute_activations, without_values
from fvl_lightning.profiling.memory import NF4_BYTES
from fvl_lightning.runs.setup import build_stage
from fvl_lightning.stages.base import Stage
from fvl_lightning.training.components import COMPONENT_OF_CHILD, blocks, set_modes
from fvl_lightning.training.lora import quantizable_layers

HEAD = "embeddings, head and loss"
"""The component of everything outside of encoder, fusion, projector and language model."""
LANGUAGE_MODEL = "language_model"
FIRST_BLOCK, OTHER_BLOCKS = f"{LANGUAGE_MODEL}, first block", f"{LANGUAGE_MODEL}, other blocks"


@dataclass(frozen=True)
class Way:
    """How a micro-batch is computed, as far as it changes the operations."""

    bfloat16_parameters: bool = False
    """Whether all parameters come in bfloat16, as from FSDP2's policy, instead of being cast at each use."""
    narrow_frozen: bool = False
    """Whether frozen parameters are held in bfloat16."""
    kept: Literal["inputs", "products", "all"] = "inputs"
    """What the blocks that the experiment names keep for the backward pass, which computes the rest again."""
    masked: bool = False
    """Whether rows are packed and their documents kept apart by a dense mask."""
    head_twice: bool = True
    """Whether the loss's chunks are computed again in the backward pass, as at commit 725f5d8."""


def build(experiment: ExperimentConfig) -> Stage:
    """Returns the experiment's stage on the meta device, with its adapters."""
    plain = experiment.lora and replace(experiment.lora, quantization=None)
    stage = build_stage(replace(experiment, lora=plain), "meta")
    stage.adapt(Path())
    set_modes(stage.model, stage.trainable)
    return stage


def with_layers(experiment: ExperimentConfig, layers: int) -> ExperimentConfig:
    """Returns the experiment with so many blocks in its language model; its configuration is on this machine."""
    choice: Any = experiment.language_model
    config = choice.config
    model = config.model or read_model(config.pretrained, None)
    fewer = replace(config, model={**model, "num_hidden_layers": layers})
    return replace(experiment, language_model=replace(choice, config=fewer))


def trace(experiment: ExperimentConfig, stage: Stage, rows: int, way: Way, layers: int) -> list[Operation]:
    """Returns the operations of forward and backward pass of a micro-batch.

    Args:
        experiment: gives length, precision and recomputed blocks.
        stage: from `build`.
        rows: rows of the micro-batch, each with one image.
        way: how they are computed.
        layers: of the language model; in `stage`, which may have two, the others stand for all but the first.
    """
    model, recorder, settings = stage.model, Recorder(), experiment.trainer
    experiment = _with_rows(experiment, packed=way.masked)
    repeated = [block for name in settings.checkpoint_activations for block in blocks(model, name)]
    quantized = _quantized(experiment, model)
    with ExitStack() as stack:
        for context in (
            fake_tensors(), without_values(model, _narrow(model, way) | quantized),
            mock.patch("fvl_lightning.modeling.florence_vl.token_loss", recomputed_token_loss)
            if way.head_twice else nullcontext(),
            nullcontext() if way.kept == "all" else recompute_activations(repeated, way.kept), recorder,
        ):  # fmt: skip
            stack.enter_context(context)
        with _owners(model, recorder):
            with _autocast(experiment):
                loss = compute_loss(experiment, model, _shape(experiment, rows))
            recorder.owner = HEAD
            loss.backward()
        numbers = {recorder.number(layer.weight): layer.weight.numel() for layer in _layers(experiment, model)}
    times = {OTHER_BLOCKS: (layers - 1) // (len(blocks(model, LANGUAGE_MODEL)) - 1)}
    return [
        replace(operation, times=times.get(operation.owner, 1))
        for operation in _with_dequantization(recorder.operations, numbers)
    ]


def _shape(experiment: ExperimentConfig, rows: int) -> BatchShape:
    assert experiment.data is not None
    return BatchShape(rows, experiment.data.config.sequence_length, rows)


def _with_rows(experiment: ExperimentConfig, packed: bool) -> ExperimentConfig:
    """Returns the experiment with packed rows, or with those of single samples."""
    assert experiment.data is not None
    config = replace(experiment.data.config, packing="best_fit" if packed else "none", group_by_length=False)
    return replace(experiment, data=replace(experiment.data, config=config))


def _narrow(model: nn.Module, way: Way) -> set[Tensor]:
    """Returns the parameters that are held in bfloat16."""
    if not way.bfloat16_parameters and not way.narrow_frozen:
        return set()
    return {one for one in model.parameters() if way.bfloat16_parameters or not one.requires_grad}


def _layers(experiment: ExperimentConfig, model: nn.Module) -> list[Any]:
    """Returns the linear layers that the run holds in 4 bits."""
    if experiment.lora is None or experiment.lora.quantization != "4bit":
        return []
    return list(quantizable_layers(model).values())


def _quantized(experiment: ExperimentConfig, model: nn.Module) -> set[Tensor]:
    return {layer.weight for layer in _layers(experiment, model)}


def _with_dequantization(operations: list[Operation], elements: dict[int, int]) -> Iterator[Operation]:
    """Yields the operations, before each that reads a weight of 4 bits the one that makes it bfloat16."""
    for operation in operations:
        for number in operation.reads.keys() & elements.keys():
            sizes = {number: round(NF4_BYTES * elements[number])}, {-number: 2 * elements[number]}
            yield Operation("dequantize", operation.owner, "gather", True, 0, *sizes)
        yield operation


def _autocast(experiment: ExperimentConfig) -> AbstractContextManager[Any]:
    if experiment.trainer.precision != "bf16-mixed":
        return nullcontext()
    return torch.autocast("cpu", torch.bfloat16, cache_enabled=False)  # as in Lightning


@contextmanager
def _owners(model: nn.Module, recorder: Recorder) -> Iterator[None]:
    """Sets the owner: in the forward pass a child of the model, or a block of its language model.

    In the backward pass it is the one whose output's gradient has come last.
    """
    first, *others = blocks(model, LANGUAGE_MODEL)
    owners = {child: COMPONENT_OF_CHILD[name] for name, child in model.named_children()}
    owners |= {first: FIRST_BLOCK, **dict.fromkeys(others, OTHER_BLOCKS)}
    handles: list[Any] = []

    def enter(module: nn.Module, inputs: Any) -> None:
        recorder.owner = owners[module]
        if module is first:
            _at_gradient(inputs, lambda: setattr(recorder, "owner", HEAD))

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        recorder.owner = LANGUAGE_MODEL if module in (first, *others) else HEAD
        _at_gradient(output, lambda: setattr(recorder, "owner", owners[module]))

    recorder.owner = HEAD
    for module in owners:
        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _at_gradient(output: Any, then: Callable[[], None]) -> None:
    """Calls a function when the gradient of an output is known."""
    for leaf in tree_leaves(dict(output) if hasattr(output, "keys") else output):
        if isinstance(leaf, Tensor) and leaf.requires_grad:
            leaf.register_hook(lambda _: then())
