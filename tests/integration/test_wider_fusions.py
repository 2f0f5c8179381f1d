"""Fusions with a question, with inner layers and with routes, through all stages, answers, LoRA and exports."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fvl_lightning.inference.generation import Sampling, answer, encode, user_message
from fvl_lightning.modeling.build import LoadedModel, load_model
from fvl_lightning.runs.folder import RunFolder
from tests.conftest import TINY, Run

DEMO = "experiments/demo"
FUSIONS = {
    "film": "fusion=film",
    "deepstack": "fusion=deepstack",
    "internal": "fusion=internal",
    "moe": "fusion={name: moe, top: 2, condition: question}",
}
TWO_SOURCES = "encoder.sources=[davit,ocr]"
"""The demo's language model has two blocks, so that one source can enter an inner layer."""

pytestmark = pytest.mark.slow


def logits(loaded: LoadedModel, picture: Path) -> torch.Tensor:
    """Those of a prompt about a picture."""
    messages = [[user_message([picture], "what colour is it?")]]
    inputs: Any = loaded.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        return loaded.model(**inputs).logits


@pytest.mark.parametrize("kind", FUSIONS)
def test_it_trains_answers_takes_adapters_and_is_exported(kind: str, workspace: Path, fvl_here: Run) -> None:
    model = (*TINY, FUSIONS[kind], TWO_SOURCES, "optimizer.warmup_steps=1")
    picture = workspace / "picture.png"
    Image.new("RGB", (64, 48), "red").save(picture)
    asked = ("--image", str(picture), "--prompt", "what colour is it?", "--max-tokens", "4")
    packed = ("data.packing=best_fit", "data.sequence_length=160")
    for words in (
        ("doctor", f"{DEMO}/finetune.yaml", *model),
        ("train", f"{DEMO}/pretrain.yaml", *model, "trainable.encoder=full", f"output=runs/{kind}", "name=captions"),
        ("train", f"{DEMO}/finetune.yaml", *model, *packed, f"output=runs/{kind}", "name=whole",
         f"init_from=runs/{kind}/captions", "trainable.language_model=full",
         "trainer.checkpoint_activations=[language_model]"),
        ("train", f"{DEMO}/finetune_lora.yaml", *model, f"output=runs/{kind}", "name=adapted",
         f"init_from=runs/{kind}/whole"),
        ("generate", f"runs/{kind}/adapted", *asked),
        ("evaluate", f"runs/{kind}/adapted", "--limit", "8"),
        ("export", f"runs/{kind}/adapted", f"exported/{kind}", "--merge"),
        ("generate", f"exported/{kind}", *asked),
    ):  # fmt: skip
        done = fvl_here(workspace, *words)
        assert done.returncode == 0, f"{words}: {done.stderr}{done.stdout}"
    adapted = load_model(RunFolder(workspace / "runs" / kind / "adapted").model)
    merged = load_model(workspace / "exported" / kind)
    torch.testing.assert_close(logits(merged, picture), logits(adapted, picture), rtol=0, atol=1e-4)
    texts = ("what colour is it?", "how many are there?")
    prompts = [encode(merged, [user_message([picture], text)]) for text in texts]
    together = answer(merged, prompts, Sampling(max_tokens=5))
    assert together == [answer(merged, [prompt], Sampling(max_tokens=5))[0] for prompt in prompts]
