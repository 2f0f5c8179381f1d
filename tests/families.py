"""A small model folder of each language model family, built as a training builds it, whose answers end in a token of
their own."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fvl_lightning.core.config.loading import choose
from fvl_lightning.language_models.causal import CausalLanguageModel
from fvl_lightning.modeling.build import BuiltModel, build_model
from fvl_lightning.modeling.processing.processor import FlorenceVLProcessor, make_processor
from tests.modeling.architectures import FAMILIES
from tests.tiny_models import PIXELS, experiment, pixels, tiny_tokenizer

__all__ = ["END", "FAMILIES", "Trained", "build_family", "inputs", "learn_answer", "save_family"]

END = 4
"""The token that ends an answer; the tokenizer's eos, which ends captions, is another."""
END_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %} {{ message.role }} {{ message.content }} w4{% endfor %}"
    "{% if add_generation_prompt %} assistant {% endif %}"
)
QUESTION = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "w7 w8"}]}]
ANSWER = [{"role": "assistant", "content": "w20 w21"}]
STEPS = 25


@dataclasses.dataclass
class Trained:
    """A model that has learnt its answer, the folder it was saved in, a question, and its logits [1, S, V] to that."""

    built: BuiltModel
    folder: Path
    inputs: dict[str, Tensor]
    logits: Tensor


def family_tokenizer() -> Any:
    """The tiny tokenizer with a template whose answers end in END."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [f"w{END}"]})
    tokenizer.chat_template = END_TEMPLATE
    return tokenizer


def build_family(family: str, folder: Path, seed: int = 0) -> BuiltModel:
    """The model with its initial weights in float32, and its tokenizer, which is saved in `folder`."""
    whole = experiment(folder, "finetune", "conversation", seed=seed)
    family_tokenizer().save_pretrained(folder / "tokenizer")
    config = CausalLanguageModel.Config(model=FAMILIES[family], tokenizer=str(folder / "tokenizer"))
    slot = choose("language_model", {"name": "causal", **dataclasses.asdict(config)})
    built = build_model(dataclasses.replace(whole, language_model=slot))
    built.model.eval()
    return built


def save_family(built: BuiltModel, folder: Path) -> FlorenceVLProcessor:
    """Writes a model folder as a run does; returns its processor."""
    built.model.save_pretrained(folder)
    processor = make_processor(built.model.image_spec, built.tokenizer, "stretch")
    processor.save_pretrained(folder)
    return processor


def inputs(processor: FlorenceVLProcessor) -> dict[str, Tensor]:
    """A question about a picture: input_ids [1, S], attention_mask and pixel_values."""
    ids = processor.encoder.prompt(QUESTION)
    return {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        "pixel_values": pixels(1, size=PIXELS),
    }


def learn_answer(built: BuiltModel, steps: int = STEPS) -> None:
    """Trains the model to give the one answer to the one question, its end token included, and none after it."""
    model = built.model
    processor = make_processor(model.image_spec, built.tokenizer, "stretch")
    ids, labels = processor.encoder.encode(QUESTION + ANSWER)
    sources = {name: value.detach() for name, value in model.encoder(pixels(1, size=PIXELS)).items()}
    parameters = [p for name, p in model.named_parameters() if not name.startswith("encoder.")]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(torch.tensor([ids]), image_sources=sources, labels=torch.tensor([labels])).loss
        loss.backward()
        optimizer.step()
