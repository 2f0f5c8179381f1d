"""The attention of a training by its rows, device, precision and language model; packed rows are counted as trained."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.doctor.model import check_model
from fvl_lightning.modeling.attention.choice import choose_attention, preferred_kernels, use_attention
from fvl_lightning.modeling.attention.kernels import KERNELS
from fvl_lightning.profiling.batch_shape import BatchShape, compute_loss
from fvl_lightning.profiling.flops import count_flops, estimate_flops
from fvl_lightning.profiling.memory import estimate_memory
from fvl_lightning.stages.base import Stage
from tests.modeling.architectures import CONTAMINATED, EXACT, RESCALED, SMALL
from tests.modeling.test_packing import model_of
from tests.stages.fitting import experiment_of

WIDE = {**SMALL, "model_type": "llama", "hidden_size": 16, "num_attention_heads": 2}
"""Heads of 8, the least width of flash attention."""
SHAPE = BatchShape(2, 256, 2)


def packed_stage(folder: Path, text: dict[str, Any] = WIDE, device: str = "meta", **trainer: Any) -> Stage:
    experiment = experiment_of("finetune", folder, trainer=trainer)
    data = dataclasses.replace(experiment.data.config, packing="best_fit", group_by_length=False)
    experiment.data = dataclasses.replace(experiment.data, config=data)
    config = dataclasses.replace(experiment.language_model.config, model=text)
    experiment.language_model = dataclasses.replace(experiment.language_model, config=config)
    stage: Stage = experiment.stage.component.build(experiment, device)
    return stage


ON_A_GPU = {"accelerator": "cuda", "precision": "bf16-mixed"}


@pytest.mark.parametrize(
    ("text", "trainer", "name", "reason"),
    [
        (WIDE, {}, "documents", "packed rows have no dense mask"),
        (WIDE, {"attention": "sdpa"}, "sdpa", "packed rows have a dense mask"),
        (WIDE, {"attention": "documents", "accelerator": "cuda"}, "documents", "packed rows have no dense mask"),
        (WIDE, {"attention": "flex", "accelerator": "cuda"}, "flex", "packed rows have no dense mask"),
        (WIDE, ON_A_GPU, "varlen", "packed rows have no dense mask"),
        (WIDE, {"accelerator": "cuda"}, "sdpa", "since for varlen trainer.precision is not bf16-mixed"),
        (WIDE, {"accelerator": "mps"}, "sdpa", "packed rows have a dense mask"),
        (EXACT["qwen3"] | {"head_dim": 12}, ON_A_GPU, "sdpa", "for varlen the heads of qwen3 are of another width"),
        (EXACT["gpt2"] | {"attn_pdrop": 0.1}, ON_A_GPU, "sdpa", "for varlen the language model has attn_pdrop"),
        (CONTAMINATED["falcon"], {}, "sdpa", "since for documents falcon has an attention of its own"),
        (RESCALED["gemma2"], {}, "eager", "since for documents gemma2 has the eager attention of transformers"),
        (WIDE, {"attention": "cudnn", **ON_A_GPU}, "cudnn", "packed rows have a dense mask"),
    ],
)
def test_attention_is_chosen_by_model_and_device(
    text: dict[str, Any], trainer: dict[str, Any], name: str, reason: str, tmp_path: Path
) -> None:
    stage = packed_stage(tmp_path, text, **trainer)
    assert stage.attention.name == name
    assert stage.attention.reason.endswith(reason)
    stage.attention.check()
    implementation = stage.model.config.get_text_config()._attn_implementation
    assert implementation == (f"fvl_{name}" if name in KERNELS else name.replace("cudnn", "sdpa"))
    line = check_model(stage)[1]
    assert (line.check, line.status, line.message) == ("attention", "ok", f"{name}: {stage.attention.reason}")
    again = choose_attention(stage.experiment, stage.model)
    assert again == stage.attention, "a model that has its attention already"


@pytest.mark.parametrize(
    ("text", "trainer", "problem"),
    [
        (WIDE, {"attention": "varlen"}, "there is no backward pass on cpu"),
        (WIDE, {"attention": "flex"}, "there is no backward pass on cpu"),
        (WIDE, {"attention": "cudnn"}, "cpu has no cuDNN"),
        (WIDE, {"attention": "varlen", "accelerator": "cuda"}, "trainer.precision is not bf16-mixed"),
        (CONTAMINATED["falcon"], {"attention": "documents"}, "falcon has an attention of its own"),
    ],
)
def test_an_attention_that_cannot_train_is_refused(
    text: dict[str, Any], trainer: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    """When the training begins, and by doctor; the stage is built, since a price or an estimate needs it elsewhere."""
    stage = packed_stage(tmp_path, text, **trainer)
    sentence = f"trainer.attention: {trainer['attention']} is not possible, since {problem}; take auto or sdpa"
    with pytest.raises(ConfigError) as error:
        stage.attention.check()
    assert str(error.value) == sentence
    assert (check_model(stage)[1].status, check_model(stage)[1].message) == ("failed", sentence)


@pytest.mark.parametrize("asked", ["auto", "documents", "varlen"])
def test_rows_that_are_not_packed_keep_sdpa(asked: str, tmp_path: Path) -> None:
    experiment = experiment_of("finetune", tmp_path, trainer={"attention": asked})
    model = model_of(WIDE)
    choice = choose_attention(experiment, model)
    assert (choice.name, choice.reason, choice.problem) == ("sdpa", "rows are not packed", None)
    use_attention(model, "documents")
    use_attention(model, choice.name)
    assert model.config.get_text_config()._attn_implementation == "sdpa"


def test_cudnn_comes_first_only_where_it_is_chosen(tmp_path: Path) -> None:
    order = torch._C._get_sdp_priority_order()
    plain, preferred = (packed_stage(tmp_path, **ON_A_GPU, attention=name).attention for name in ("sdpa", "cudnn"))
    with preferred_kernels(plain):
        assert torch._C._get_sdp_priority_order() == order
    with preferred_kernels(preferred):
        assert torch._C._get_sdp_priority_order()[0] == int(torch.nn.attention.SDPBackend.CUDNN_ATTENTION)
    assert torch._C._get_sdp_priority_order() == order


# Operations and memory of packed rows.


@pytest.mark.slow
def test_operations_of_packed_rows_are_those_of_real_passes(tmp_path: Path) -> None:
    here, nowhere = (packed_stage(tmp_path, device=device) for device in ("cpu", "meta"))
    here.train()
    real = count_flops(lambda: compute_loss(here.experiment, here.model, SHAPE).backward())
    counted = estimate_flops(nowhere.experiment, nowhere.model, nowhere.trainable, SHAPE)
    assert counted.training == real


@pytest.mark.slow
def test_documents_take_fewer_operations_and_less_memory_than_a_mask(tmp_path: Path) -> None:
    """Of a row's square a half, a quarter and a quarter: 0.375; varlen is counted alike on shapes."""
    flops, memory, heads = {}, {}, 2 * SHAPE.rows * 2 * 8  # layers x rows x heads x width
    for name, trainer in {"sdpa": {"attention": "sdpa"}, "documents": {}, "varlen": ON_A_GPU}.items():
        stage = packed_stage(tmp_path, **trainer)
        assert stage.attention.name == name
        flops[name] = estimate_flops(stage.experiment, stage.model, stage.trainable, SHAPE).forward
        memory[name] = estimate_memory(stage.experiment, stage.model, stage.trainable, SHAPE)
    saved = 2 * 2 * heads * SHAPE.tokens**2 * (1 - 0.375)
    assert flops["sdpa"] - flops["documents"] == saved
    assert flops["documents"] == flops["varlen"]
    activations = {name: estimate.activations["language_model"] for name, estimate in memory.items()}
    assert activations["documents"] < activations["sdpa"]
    assert activations["varlen"] < activations["documents"]
