"""Every family of language models with adapters: whatever loads them computes what was trained."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, GenerationConfig

from fvl_lightning.core.experiment import LoraConfig
from fvl_lightning.inference.adapters import attach_adapters
from fvl_lightning.modeling.adapters.folders import base_hash, save_adapter
from fvl_lightning.modeling.build import load_model
from fvl_lightning.modeling.conversion.export import export_adapter, export_merged
from fvl_lightning.modeling.processing.processor import FlorenceVLProcessor
from fvl_lightning.stages.finetune import FinetuneStage
from fvl_lightning.training.components import children_with_mode, resolve_trainable
from fvl_lightning.training.lora import add_adapters
from tests.families import END, END_TEMPLATE, FAMILIES, build_family, inputs, learn_answer, save_family
from tests.tiny_models import EOS

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.05}
"""Of the largest logit: a merge in bfloat16 rounds the weights. Without a merge they are equal."""
OTHER_TEMPLATE = END_TEMPLATE.replace(f"w{END}", "{{ eos_token }}")
NOISE = 0.02
"""Changes the logits visibly and the answer not at all."""
TOKENS = 12
QUICK = ("gpt2", "phi3")
"""Tied, tied with matrices the other way round, and untied."""


def logits(model: nn.Module, asked: dict[str, Tensor]) -> Tensor:
    """[1, S, V]."""
    pixel_values = asked["pixel_values"].to(model.dtype)
    with torch.no_grad():
        return model.eval()(**asked | {"pixel_values": pixel_values}).logits.float()


def trained_adapter(name: str, folder: Path, dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor]:
    """Saves a base in `folder`/base and a run's adapter in `folder`/adapter; returns a question and its logits.

    The base's files know of no end but the tokenizer's eos: it was trained with another chat template.
    """
    built = build_family(name, folder)
    learn_answer(built)
    built.model.to(dtype)
    asked = inputs(save_family(built, folder / "run"))
    ends = built.model.generation_config
    built.model.generation_config = GenerationConfig(eos_token_id=EOS, pad_token_id=ends.pad_token_id)
    built.tokenizer.chat_template = OTHER_TEMPLATE
    save_family(built, folder / "base")
    model = load_model(folder / "base").model
    assert model.generation_config.eos_token_id == [EOS]
    model.generation_config = ends
    trainable = resolve_trainable(FinetuneStage.TRAINABLE, {"language_model": "lora"}, "finetune")
    name_of_base = base_hash(model.float().state_dict(), children_with_mode(trainable, "full"))
    add_adapters(model, trainable, LoraConfig(rank=2), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += NOISE * torch.randn(parameter.shape, generator=generator)
    save_adapter(model, folder / "adapter", folder / "base", name_of_base, children_with_mode(trainable, "full"))
    save_family_processor(folder)
    return asked, logits(model, asked)


def save_family_processor(folder: Path) -> None:
    """Writes the processor that the run trained with beside the adapter."""
    FlorenceVLProcessor.from_pretrained(folder / "run").save_pretrained(folder / "adapter")


def check(model: Any, asked: dict[str, Tensor], expected: Tensor, tolerance: float = 0.0) -> None:
    """The model computes these logits, and its greedy answer ends where training ended it."""
    atol = tolerance * float(expected.abs().max())
    torch.testing.assert_close(logits(model, asked), expected, rtol=0, atol=atol)
    given = asked | {"pixel_values": asked["pixel_values"].to(model.dtype)}
    written = model.generate(**given, max_new_tokens=TOKENS)
    assert written[0, asked["input_ids"].shape[1] :].tolist() == [20, 21, END]


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_adapters_are_read_alike_by_the_run_peft_and_transformers(name: str, tmp_path: Path) -> None:
    asked, expected = trained_adapter(name, tmp_path, torch.float32)
    base, adapter = tmp_path / "base", str(tmp_path / "adapter")
    whole = AutoModelForImageTextToText.from_pretrained(base)
    assert float((logits(whole, asked) - expected).abs().max()) > 0.01
    whole.load_adapter(adapter)
    check(whole, asked, expected)
    check(AutoModelForImageTextToText.from_pretrained(adapter), asked, expected)
    check(peft.AutoPeftModel.from_pretrained(adapter), asked, expected)
    under = peft.PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), adapter)
    check(under, asked, expected)
    check(under.merge_and_unload(), asked, expected, TOLERANCE[torch.float32])
    other = peft.LoraConfig(r=1, target_modules=peft.PeftConfig.from_pretrained(adapter).target_modules)
    second = peft.get_peft_model(AutoModelForImageTextToText.from_pretrained(base), other)
    assert second.get_base_model().generation_config.eos_token_id == EOS
    second.load_adapter(adapter, "second")
    second.set_adapter("second")
    check(second, asked, expected)
    given = load_model(base)
    assert attach_adapters(given, [f"own={adapter}"]) == ["own"]
    check(given.model, asked, expected)


def test_an_adapter_without_its_ends_in_peft_s_file_has_them_from_its_generation_config(tmp_path: Path) -> None:
    asked, expected = trained_adapter("llama", tmp_path, torch.float32)
    path = tmp_path / "adapter" / "adapter_config.json"
    content = json.loads(path.read_text())
    assert content["auto_mapping"].pop("stop_tokens") == [EOS, END]
    path.write_text(json.dumps(content))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
    model.load_adapter(str(tmp_path / "adapter"))
    check(model, asked, expected)
    (tmp_path / "adapter" / "generation_config.json").unlink()
    export_adapter(tmp_path / "adapter", tmp_path / "exported", file_bytes=10**9)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
    check(peft.PeftModel.from_pretrained(model, tmp_path / "exported"), asked, expected)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", FAMILIES)
def test_exports_and_merges_are_the_run(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    asked, exact = trained_adapter(name, tmp_path, dtype)
    tolerance = TOLERANCE[dtype]
    run = load_model(tmp_path / "adapter").model
    assert run.dtype == dtype
    expected = logits(run, asked)
    check(run, asked, exact, tolerance)
    export_adapter(tmp_path / "adapter", tmp_path / "exported", file_bytes=10**9)
    check(load_model(tmp_path / "exported").model, asked, expected)
    check(peft.AutoPeftModel.from_pretrained(tmp_path / "exported"), asked, expected)
    export_merged(tmp_path / "adapter", None, tmp_path / "merged", file_bytes=10**4)
    check(AutoModelForImageTextToText.from_pretrained(tmp_path / "merged"), asked, expected, tolerance)
