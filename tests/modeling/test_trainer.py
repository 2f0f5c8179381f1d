"""transformers' Trainer on the model: checkpointing, evaluation with metrics, label smoothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import EvalPrediction, Trainer, TrainingArguments

from fvl_lightning.core.types import IGNORE_INDEX
from tests.tiny_models import rows, snapshot, tiny_model

BATCH = rows(4)
ROWS = [
    {"input_ids": ids, "labels": labels, "pixel_values": image}
    for ids, labels, image in zip(BATCH.token_ids, BATCH.labels, BATCH.images, strict=True)
]
SHIFTED = BATCH.labels[:, 1:].flatten()
LORA = LoraConfig(r=2, target_modules=r"language_model\..*\.q_proj", init_lora_weights=False)


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning leaves the words of its ranks in the environment, by which Trainer would take this for one of them."""
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    AcceleratorState._reset_state(reset_partial_state=True)


def trainer(tmp_path: Path, model: nn.Module, metrics: Any = None, **words: Any) -> Trainer:
    """Of one step over all rows, or an evaluation of them in two batches."""
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=4, per_device_eval_batch_size=2, learning_rate=0.1,
        remove_unused_columns=False, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no", optim="sgd",
        lr_scheduler_type="constant", **words,
    )  # fmt: skip
    return Trainer(model, arguments, train_dataset=ROWS, eval_dataset=ROWS, compute_metrics=metrics)


def stacked(some: list[dict[str, Tensor]]) -> dict[str, Any]:
    """Rows as one batch."""
    return {name: torch.stack([row[name] for row in some]) for name in some[0]}


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    """[4, S, V]."""
    return model.eval()(input_ids=BATCH.token_ids, pixel_values=BATCH.images).logits


@pytest.mark.slow
@pytest.mark.parametrize("adapters", [False, True], ids=["whole", "adapters"])
def test_checkpointing_makes_the_same_update(adapters: bool, tmp_path: Path) -> None:
    def trained(**words: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model: nn.Module = get_peft_model(tiny_model(), LORA) if adapters else tiny_model()
        trainer(tmp_path, model, **words).train()
        return snapshot(model)

    plain = trained()
    torch.manual_seed(0)
    before = snapshot(get_peft_model(tiny_model(), LORA) if adapters else tiny_model())
    assert any(not torch.equal(before[name], plain[name]) for name in plain)
    for words in (None, {"use_reentrant": True}):
        found = trained(gradient_checkpointing=True, gradient_checkpointing_kwargs=words)
        for name, value in plain.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)


def test_metrics_are_computed_on_logits(tmp_path: Path) -> None:
    seen: list[EvalPrediction] = []

    def accuracy(found: EvalPrediction) -> dict[str, float]:
        seen.append(found)
        targets = found.label_ids[:, 1:]
        right = (found.predictions[:, :-1].argmax(-1) == targets)[targets != IGNORE_INDEX]
        return {"accuracy": float(right.mean())}

    model = tiny_model()
    scores = trainer(tmp_path, model, accuracy).evaluate()
    wanted = logits(model)
    np.testing.assert_allclose(seen[0].predictions, wanted.numpy(), rtol=0, atol=1e-5)
    halves = [
        nn.functional.cross_entropy(part[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX)
        for part, labels in zip(wanted.split(2), BATCH.labels.split(2), strict=True)
    ]
    assert scores["eval_loss"] == pytest.approx(float(sum(halves)) / 2, abs=1e-5)
    known = SHIFTED != IGNORE_INDEX
    right = wanted[:, :-1].flatten(0, 1).argmax(-1)[known] == SHIFTED[known]
    assert scores["eval_accuracy"] == pytest.approx(float(right.float().mean()))
    plain = trainer(tmp_path, model)
    plain.data_collator = lambda some: {"return_logits": False} | stacked(some)
    asked: list[tuple[int, ...]] = []
    model.get_output_embeddings().register_forward_hook(lambda _, hidden, __: asked.append(tuple(hidden[0].shape)))
    assert plain.evaluate()["eval_loss"] == pytest.approx(scores["eval_loss"], abs=1e-6)
    assert {len(shape) for shape in asked} == {2}, "logits of rows that nobody supervises"


@pytest.mark.parametrize("adapters", [False, True], ids=["whole", "adapters"])
def test_label_smoothing_is_of_the_next_token(adapters: bool, tmp_path: Path) -> None:
    model: nn.Module = get_peft_model(tiny_model(), LORA) if adapters else tiny_model()
    wanted = nn.functional.cross_entropy(
        logits(model)[:, :-1].flatten(0, 1), SHIFTED, ignore_index=IGNORE_INDEX, label_smoothing=0.2
    )
    loss = trainer(tmp_path, model, label_smoothing_factor=0.2).compute_loss(model, stacked(ROWS))
    assert float(loss.detach()) == pytest.approx(float(wanted), abs=1e-5)
