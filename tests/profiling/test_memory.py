"""The memory estimate of a step, compared with torch's profiler and with sums by hand."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.profiler import ProfilerActivity, profile
from torch.testing._internal.distributed.fake_pg import FakeStore

from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.profiling.batch_shape import BatchShape, compute_loss
from fvl_lightning.profiling.memory import NF4_BYTES, MemoryEstimate, checkpoint_bytes, estimate_memory
from fvl_lightning.runs.setup import build_stage
from fvl_lightning.stages.base import Stage
from fvl_lightning.training.components import blocks, count_parameters, sharding_units
from fvl_lightning.training.distributed.block_transforms import transform_blocks
from fvl_lightning.training.distributed.fsdp import local_shard, shard
from fvl_lightning.training.optimizer import build_optimizer
from tests.conftest import ROOT
from tests.stages.fitting import build_stage as build_tiny_stage
from tests.tiny_models import PIXELS, TOKENS, snapshot

SIZES = ("trainer.accelerator=cpu", "feature_cache=null", "data.packing=none", "data.sequence_length=96")
"""The demo's model on batches of one kind."""
RECOMPUTED = "trainer.checkpoint_activations=[encoder,language_model]"
WAYS = [
    pytest.param(("trainable.encoder=full",), id="full"),
    pytest.param(("trainable.language_model=lora", "optimizer.name=adamw"), id="lora"),
    pytest.param(
        ("trainable.encoder=full", RECOMPUTED, "optimizer.name=adamw"), id="recomputed", marks=pytest.mark.slow
    ),
    pytest.param((RECOMPUTED, "trainer.checkpoint_keep=products"), id="products kept", marks=pytest.mark.slow),
    pytest.param((), id="frozen encoder", marks=pytest.mark.slow),
    pytest.param(("trainer.precision=bf16-mixed",), id="bfloat16", marks=pytest.mark.slow),
    pytest.param(("trainer.accumulate=2", RECOMPUTED), id="accumulated", marks=pytest.mark.slow),
]
CLOSE = 0.15


def demo_stage(workspace: Path, monkeypatch: pytest.MonkeyPatch, *words: str, device: str = "cpu") -> Stage:
    """The stage of the demo's finetuning, adapters in place."""
    monkeypatch.chdir(workspace)
    words = (*SIZES, "trainer.batch_size=16", *words)
    config = load_config(ExperimentConfig, Path("experiments/demo/finetune.yaml"), words)
    stage = build_stage(config, device)
    stage.adapt(workspace)
    return stage


def estimated(stage: Stage, shape: BatchShape | None = None) -> MemoryEstimate:
    return estimate_memory(stage.experiment, stage.model, stage.trainable, shape)


def measured(stage: Stage, shape: BatchShape) -> tuple[int, int]:
    """Bytes held before the second step, and at most within it, by what the profiler sees allocated."""
    model, trainer = stage.model, stage.experiment.trainer
    stage.train()
    transform_blocks(functools.partial(blocks, model), trainer)
    optimizer = build_optimizer(model, stage.experiment.optimizer)

    def step() -> None:
        for _ in range(trainer.accumulate):
            narrow = trainer.precision == "bf16-mixed"
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if narrow else contextlib.nullcontext():
                loss = compute_loss(stage.experiment, model, shape)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    held = sum(local_shard(tensor).nbytes for tensor in [*model.parameters(), *model.buffers(), *states])
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    allocated = peak = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            allocated += event.nbytes()
            peak = max(peak, allocated)
    return held, held + peak


@contextlib.contextmanager
def one_of(ranks: int) -> Iterator[DeviceMesh]:
    """As if this were the first of so many ranks, which answer at once, with anything."""
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        yield init_device_mesh("cpu", (ranks,))
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("words", WAYS)
def test_the_peak_is_the_measured_one(words: tuple[str, ...], workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = demo_stage(workspace, monkeypatch, *words)
    estimate = estimated(stage)
    assert estimate.shape == BatchShape(16, 96, 16)
    held, peak = measured(stage, estimate.shape)
    assert estimate.held == held
    assert estimate.peak == pytest.approx(peak, rel=CLOSE)
    assert estimate.peak > 1.2 * held, "nothing but what is held was counted"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("reshard", [True, False])
def test_the_peak_under_fsdp_is_the_measured_one(
    reshard: bool, precision: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["trainable.encoder=full", "optimizer.name=adamw", RECOMPUTED, "trainer.batch_size=4"]
    words += ["trainer.strategy=fsdp", "trainer.devices=2", f"trainer.reshard_after_forward={str(reshard).lower()}"]
    words += [f"trainer.precision={precision}"]
    stage = demo_stage(workspace, monkeypatch, *words)
    estimate = estimated(stage)
    with one_of(2) as mesh:
        shard(stage.model, *sharding_units(stage.model), mesh, stage.experiment.trainer)
        held, peak = measured(stage, estimate.shape)
    assert estimate.held == held
    assert estimate.peak == pytest.approx(peak, rel=CLOSE)


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    stage = build_tiny_stage("finetune", tmp_path, trainer={"checkpoint_activations": ["language_model"]})
    before, names = snapshot(stage.model), list(stage.model.state_dict())
    estimated(stage, BatchShape(2, 16, 2))
    assert list(stage.model.state_dict()) == names
    assert all(torch.equal(tensor, before[name]) for name, tensor in snapshot(stage.model).items())
    assert all("forward" not in vars(module) for module in stage.model.modules())
    assert all(parameter.grad is None for parameter in stage.model.parameters())


def test_shapes_alone_give_what_values_give(tmp_path: Path) -> None:
    here, nowhere = (build_tiny_stage("pretrain", tmp_path, device) for device in ("cpu", "meta"))
    assert estimated(here, BatchShape(3, 20, 4)) == estimated(nowhere, BatchShape(3, 20, 4))


def test_what_is_held_is_counted_from_parameters(tmp_path: Path) -> None:
    adamw = build_tiny_stage("finetune", tmp_path, "meta")
    estimate = estimated(adamw, BatchShape(2, 16, 2))
    for name, count in count_parameters(adamw.model).items():
        assert estimate.gradients[name] == 4 * count["trainable"]
        assert estimate.parameters[name] >= 4 * count["parameters"]
        assert estimate.optimizer[name] == pytest.approx(8 * count["trainable"], rel=0.05), name
    muon = estimated(build_tiny_stage("finetune", tmp_path, "meta", optimizer={"name": "muon"}), BatchShape(2, 16, 2))
    assert sum(muon.optimizer.values()) < 0.8 * sum(estimate.optimizer.values())
    assert muon.parameters == estimate.parameters
    written = checkpoint_bytes(adamw.experiment, adamw.model)
    assert written == pytest.approx(sum(estimate.gradients.values()) + sum(estimate.optimizer.values()), rel=0.05)


@pytest.fixture(scope="module")
def on(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., MemoryEstimate]:
    """(trainer's settings) -> the estimate for a pretraining of the tiny model with them."""
    folder = tmp_path_factory.mktemp("on")

    @functools.cache
    def estimate_on(**trainer: Any) -> MemoryEstimate:
        settings = {name: list(value) if isinstance(value, tuple) else value for name, value in trainer.items()}
        return estimated(build_tiny_stage("pretrain", folder, "meta", trainer=settings), BatchShape(4, 16, 4))

    return estimate_on


@pytest.mark.slow
def test_strategies_share_what_they_share(on: Callable[..., MemoryEstimate]) -> None:
    single, ddp = on(), on(strategy="ddp", devices=8)
    fsdp, hsdp = (on(strategy=name, devices=4, nodes=2) for name in ("fsdp", "hsdp"))
    everything = sum(single.gradients.values())
    assert ddp.communication == everything
    assert single.peak <= ddp.peak <= single.peak + everything, "the buckets hold the gradients"
    added = on(strategy="ddp", devices=8, accumulate=2)
    assert added.peak == pytest.approx(on(accumulate=2).peak + everything, rel=0.01)
    assert single.communication == 0
    for kind in ("gradients", "optimizer"):
        whole = sum(getattr(single, kind).values())
        assert whole / 8 <= sum(getattr(fsdp, kind).values()) < whole / 5, "in eighths, rounded up to rows"
        assert whole / 4 <= sum(getattr(hsdp, kind).values()) < whole / 3
    assert fsdp.activations == single.activations
    kept = on(strategy="fsdp", devices=4, nodes=2, reshard_after_forward=False)
    assert kept.communication > fsdp.communication
    away = on(strategy="fsdp", devices=4, nodes=2, cpu_offload=True, accelerator="cuda")
    assert away.held == fsdp.held
    assert away.peak < fsdp.peak


@pytest.mark.slow
def test_recomputed_blocks_keep_their_inputs(on: Callable[..., MemoryEstimate]) -> None:
    whole, recomputed = on(), on(checkpoint_activations=("language_model",))
    assert recomputed.activations["language_model"] < 0.7 * whole.activations["language_model"]
    assert recomputed.activations["encoder"] == whole.activations["encoder"]


@pytest.mark.slow
def test_activations_grow_with_the_batch_and_stop_at_what_is_frozen(
    on: Callable[..., MemoryEstimate], tmp_path: Path
) -> None:
    one, two = on(), estimated(build_tiny_stage("pretrain", tmp_path, "meta"), BatchShape(8, 16, 8))
    assert two.activations["encoder"] == pytest.approx(2 * one.activations["encoder"], rel=0.05)
    frozen = estimated(build_tiny_stage("align", tmp_path, "meta"), BatchShape(4, 16, 4))
    assert frozen.activations["encoder"] <= 1.2 * 4 * (3 * PIXELS**2 + 4 * 16 * TOKENS * 4) * 4  # pixels and sources
    assert frozen.gradients["encoder"] == 0


@pytest.mark.slow
def test_four_bits_are_counted_without_a_gpu(tmp_path: Path) -> None:
    how: dict[str, Any] = {"trainable": {"language_model": "lora"}, "lora": {"rank": 2}}
    stage = build_tiny_stage("finetune", tmp_path, "meta", **how)
    stage.adapt(tmp_path)
    plain = estimated(stage, BatchShape(2, 16, 2))
    lora = dataclasses.replace(stage.experiment.lora, quantization="4bit")
    quantized = dataclasses.replace(stage.experiment, lora=lora)
    narrow = estimate_memory(quantized, stage.model, stage.trainable, BatchShape(2, 16, 2))
    layers = [m for m in stage.model.language_model.modules() if type(m) is torch.nn.Linear and m.out_features != 2]
    matrices = sum(m.weight.numel() for m in layers if m.in_features != 2 and m.out_features != 40)
    saved = plain.parameters["language_model"] - narrow.parameters["language_model"]
    assert saved == pytest.approx((4 - NF4_BYTES) * matrices, rel=0.01)
    assert narrow.gradients == plain.gradients
    trainer = dataclasses.replace(stage.experiment.trainer, precision="bf16-mixed")
    lora = dataclasses.replace(stage.experiment.lora, quantization="bfloat16")
    halved = dataclasses.replace(stage.experiment, lora=lora, trainer=trainer)
    half = estimate_memory(halved, stage.model, stage.trainable, BatchShape(2, 16, 2))
    assert plain.parameters["language_model"] - half.parameters["language_model"] == 2 * matrices


def test_the_encoder_alone_is_estimated(tmp_path: Path) -> None:
    estimate = estimated(build_tiny_stage("encoder_pretrain", tmp_path, "meta"))
    assert estimate.peak > estimate.held
    assert sum(estimate.activations.values()) > 0


@pytest.mark.slow
def test_packed_rows_and_cached_features(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = estimated(demo_stage(workspace, monkeypatch, "data.packing=best_fit", device="meta"))
    plain = estimated(demo_stage(workspace, monkeypatch, device="meta"))
    cached = estimated(demo_stage(workspace, monkeypatch, f"feature_cache={ROOT}", device="meta"))
    assert packed.activations["language_model"] > plain.activations["language_model"], "copies, sample by sample"
    assert cached.parameters == plain.parameters
    assert cached.activations["fusion"] + cached.activations["projector"] > 0
