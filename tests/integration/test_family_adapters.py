"""Every family of language models with adapters: whatever loads them computes what was trained."""

from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from fvl_lightning.core.experiment import LoraConfig
from fvl_lightning.modeling.adapters import base_hash, save_adapter
from fvl_lightning.modeling.build import load_model
from fvl_lightning.modeling.export import export_adapter, export_merged
from fvl_lightning.stages.finetune import FinetuneStage
from fvl_lightning.training.components import children, resolve_trainable
from fvl_lightning.training.lora import add_adapters
from tests.families import FAMILIES, build_family, inputs, save_family

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.05}
"""Of logits of size 1: a merge in bfloat16 rounds the weights. Without a merge they are equal."""
QUICK = ("llama", "gpt2", "phi3")
"""Tied, tied with matrices the other way round, and untied."""


def logits(model: nn.Module, asked: dict[str, Tensor]) -> Tensor:
    """[1, S, V]."""
    pixel_values = asked["pixel_values"].to(model.dtype)
    with torch.no_grad():
        return model.eval()(**asked | {"pixel_values": pixel_values}).logits.float()


def trained_adapter(name: str, folder: Path, dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor]:
    """Saves a base in `folder`/base and a run's adapter in `folder`/adapter; returns a question and its logits."""
    built = build_family(name, folder)
    built.model.to(dtype)
    asked = inputs(save_family(built, folder / "base"))
    model = load_model(folder / "base").model
    trainable = resolve_trainable(FinetuneStage.TRAINABLE, {"language_model": "lora"}, "finetune")
    name_of_base = base_hash(model.float().state_dict(), children(trainable, "full"))
    add_adapters(model, trainable, LoraConfig(rank=2), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    save_adapter(model, folder / "adapter", folder / "base", name_of_base, children(trainable, "full"))
    save_family_processor(folder)
    return asked, logits(model, asked)


def save_family_processor(folder: Path) -> None:
    """Writes the base's processor beside the adapter, as a run does."""
    load_model(folder / "base").processor.save_pretrained(folder / "adapter")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_adapters_are_read_alike_by_the_run_peft_and_transformers(name: str, tmp_path: Path) -> None:
    asked, expected = trained_adapter(name, tmp_path, torch.float32)
    base, adapter = tmp_path / "base", str(tmp_path / "adapter")
    whole = AutoModelForImageTextToText.from_pretrained(base)
    assert float((logits(whole, asked) - expected).abs().max()) > 0.01
    whole.load_adapter(adapter)
    assert torch.equal(logits(whole, asked), expected)
    assert torch.equal(logits(AutoModelForImageTextToText.from_pretrained(adapter), asked), expected)
    under = peft.PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), adapter)
    assert torch.equal(logits(under, asked), expected)
    torch.testing.assert_close(logits(under.merge_and_unload(), asked), expected, rtol=0, atol=TOLERANCE[torch.float32])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", FAMILIES)
def test_exports_and_merges_are_the_run(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    asked, exact = trained_adapter(name, tmp_path, dtype)
    tolerance = TOLERANCE[dtype]
    run = load_model(tmp_path / "adapter").model
    assert run.dtype == dtype
    expected = logits(run, asked)
    torch.testing.assert_close(expected, exact, rtol=0, atol=tolerance)
    export_adapter(tmp_path / "adapter", tmp_path / "exported", file_bytes=10**9)
    assert torch.equal(logits(load_model(tmp_path / "exported").model, asked), expected)
    assert torch.equal(logits(peft.AutoPeftModel.from_pretrained(tmp_path / "exported"), asked), expected)
    export_merged(tmp_path / "adapter", None, tmp_path / "merged", file_bytes=10**4)
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged, asked), expected, rtol=0, atol=tolerance)
