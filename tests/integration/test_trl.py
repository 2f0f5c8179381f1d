"""TRL's SFTTrainer on an exported model; skipped where trl is not installed (the extra `trl`)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from fvl_lightning.core.types import IGNORE_INDEX
from fvl_lightning.modeling.processing.processor import make_processor
from tests.tiny_models import snapshot, tiny_model, tiny_tokenizer

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.slow

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %} {{ message.role }} {{ message.content }} "
    "{% if message.role == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} assistant {% endif %}"
)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A model folder."""
    model, tokenizer = tiny_model(fusion="gated"), tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    model.save_pretrained(tmp_path / "model")
    make_processor(model.image_spec, tokenizer, "pad").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def picture(seed: int) -> Image.Image:
    """Seeded noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 20, 3), dtype=np.uint8))


def conversations(form: str) -> list[dict[str, Any]]:
    """Rows in one of the forms that SFTTrainer takes."""
    rows = []
    for seed in range(4):
        question = [{"role": "user", "content": "w7 w8"}]
        answer = [{"role": "assistant", "content": " ".join(["w11"] * (1 + seed % 2))}]
        row: dict[str, Any] = {"messages": question + answer}
        if form == "prompt and completion":
            row = {"prompt": question, "completion": answer}
        rows.append(row if form == "text" else row | {"images": [picture(seed)]})
    return rows


@pytest.mark.parametrize("form", ["messages", "prompt and completion", "text", "adapters"])
def test_sft_trainer_trains_an_export(form: str, exported: Path, tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(exported)
    processor = AutoProcessor.from_pretrained(exported)
    before = snapshot(model)
    arguments = trl.SFTConfig(
        str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=2, learning_rate=0.1, report_to="none",
        use_cpu=True, bf16=False, save_strategy="no", optim="sgd", gradient_checkpointing=True, disable_tqdm=True,
        max_length=None, logging_steps=1, eval_strategy="steps", eval_steps=2,
    )  # fmt: skip
    lora = LoraConfig(r=2, target_modules=r"language_model\..*\.q_proj") if form == "adapters" else None
    rows = datasets.Dataset.from_list(conversations(form))
    trainer = trl.SFTTrainer(
        model, arguments, processing_class=processor, train_dataset=rows, eval_dataset=rows, peft_config=lora
    )
    batch = trainer.data_collator([rows[0], rows[1]]) if form == "messages" else None
    if batch is not None:
        with torch.no_grad():
            wanted = model.eval()(**batch).loss
            found = trainer.compute_loss(model, batch)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
        assert int((batch["labels"] != IGNORE_INDEX).sum()) == int(batch["attention_mask"].sum())
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2
    assert all(np.isfinite(losses))
    after = snapshot(trainer.model)
    moved = {name for name, value in after.items() if name not in before or not torch.equal(before[name], value)}
    assert moved
    assert form != "adapters" or any("lora_" in name for name in moved)
