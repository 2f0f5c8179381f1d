"""Operations counted on shapes are those of real passes, and of the report's cost."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.types import IGNORE_INDEX
from fvl_lightning.evaluation.cost import QUESTIONS, count_cost
from fvl_lightning.evaluation.scoring import open_model
from fvl_lightning.profiling.batch_shape import BatchShape, compute_loss
from fvl_lightning.profiling.devices import GPUS, SUSTAINED, Device, _gpu_called, named_device
from fvl_lightning.profiling.flops import count_flops, encoder_flops, estimate_flops, question_flops, training_flops
from fvl_lightning.runs.folder import RunFolder
from tests.stages.fitting import build_stage
from tests.tiny_models import rows


@pytest.mark.parametrize("name", ["finetune", pytest.param("encoder_pretrain", marks=pytest.mark.slow)])
def test_shapes_give_the_operations_of_real_passes(name: str, tmp_path: Path) -> None:
    here, nowhere = (build_stage(name, tmp_path, device) for device in ("cpu", "meta"))
    shape = BatchShape(3, 12, 3, supervised=5)
    here.train()
    real = count_flops(lambda: compute_loss(here.experiment, here.model, shape).backward())
    counted = estimate_flops(nowhere.experiment, nowhere.model, nowhere.trainable, shape)
    assert counted.training == counted.executed == real
    assert 0 < counted.forward < counted.training


def test_a_batch_too_large_for_the_memory_is_counted_on_its_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, batch, calls = build_stage("finetune", tmp_path), rows(3), []
    real, compute = training_flops(stage, batch), stage.compute

    def full_at_first(batch: Any) -> Any:
        calls.append(batch)
        if len(calls) == 1:
            raise torch.OutOfMemoryError
        return compute(batch)

    monkeypatch.setattr(stage, "compute", full_at_first)
    assert training_flops(stage, batch) == real
    assert len(calls) == 2
    assert not any(isinstance(parameter, FakeTensor) for parameter in stage.parameters())


@pytest.mark.slow
def test_recomputed_activations_are_executed_twice_and_counted_once(tmp_path: Path) -> None:
    shape = BatchShape(2, 12, 2)
    plain, recomputed = (
        build_stage("finetune", tmp_path, "meta", trainer={"checkpoint_activations": names})
        for names in ([], ["language_model"])
    )
    whole, twice = (estimate_flops(s.experiment, s.model, s.trainable, shape) for s in (plain, recomputed))
    assert twice.training == whole.training == whole.executed
    assert whole.training < twice.executed < whole.training + whole.forward


@pytest.mark.slow
def test_the_estimate_is_the_cost_of_the_report(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch of the estimate has as many supervised tokens in each row; in the real one they differ."""
    monkeypatch.chdir(asked)
    run = RunFolder.open("runs/tiny")
    built, data = open_model(run)
    cost = count_cost(run, built, data)
    batch = next(iter(data.train_dataloader()))
    rows, tokens = batch.token_ids.shape
    supervised = round(int((batch.labels != IGNORE_INDEX).sum()) / rows)
    experiment = run.experiment()
    stage = experiment.stage.component(experiment, built.model, built.tokenizer)
    shape = BatchShape(rows, tokens, rows, supervised)
    counted = estimate_flops(experiment, built.model, stage.trainable, shape)
    assert counted.training / rows == pytest.approx(cost["training_flops"], rel=0.01)
    questions = list({question.index: question for question in data.questions("test")}.values())[:QUESTIONS]
    longest = max(len(data.encoder.prompt(question.prompt_messages)) for question in questions)
    first = question_flops(built.model, longest - built.model.image_spec.tokens_per_image)
    assert first == pytest.approx(cost["inference_flops"], rel=0.01)
    assert 0 < encoder_flops(built.model) < first


def test_a_gpu_is_known_by_the_name_of_its_driver() -> None:
    names = {
        "NVIDIA A100-SXM4-80GB": "a100-80gb", "NVIDIA A100-PCIE-40GB": "a100-40gb", "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA H200": "h200", "NVIDIA L4": "l4", "NVIDIA L40S": "l40s", "NVIDIA GeForce RTX 4090": "rtx4090",
        "NVIDIA RTX A6000": "rtxa6000", "NVIDIA A10": "a10",
    }  # fmt: skip
    for name, key in names.items():
        assert _gpu_called(name, int(GPUS[key].memory_gb * 1e9)) is GPUS[key], name
    for other in ("NVIDIA H100 PCIe", "NVIDIA A10G", "NVIDIA L40", "NVIDIA GeForce RTX 4090 Laptop GPU", "Tesla T4"):
        assert _gpu_called(other, 24 * 10**9) is None, other
    device = named_device("A100-80GB")
    assert device.memory == 80e9
    assert device.speed("bf16-mixed") == pytest.approx(SUSTAINED * 312e12)
    assert device.speed("32-true") == pytest.approx(SUSTAINED * 19.5e12)
    assert Device("CPU", None, None, None, here=True).speed("32-true") is None
    with pytest.raises(ConfigError, match=r"--device: unknown GPU 'h10', allowed: a10, .*; did you mean 'h100'"):
        named_device("h10")


def test_a_view_of_a_parameter_is_counted_without_gradients() -> None:
    """Queries that a module gets, expanded over the images: torch says of them that they need a gradient."""
    queries, layer = nn.Embedding(3, 4), nn.Linear(4, 5)
    with torch.no_grad():
        assert count_flops(lambda: layer(queries.weight.expand(2, -1, -1))) == 2 * (2 * 3) * 4 * 5
