"""From an experiment's slots to a model with weights, and back from a saved folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer
from transformers.initialization import no_init_weights

from fvl_lightning.core.config import Choice
from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.core.experiment import COMPONENTS, ExperimentConfig
from fvl_lightning.language_models.causal import load_tokenizer
from fvl_lightning.modeling.configuration import FlorenceVLConfig
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration
from fvl_lightning.modeling.initialization import initialize

IMAGE_TOKEN = "<image>"
"""The placeholder; its id stands in token_ids once per image token."""


@dataclass
class Built:
    """A model and the tokenizer its rows are made with."""

    model: FlorenceVLForConditionalGeneration
    tokenizer: Any


class EncoderModel(nn.Module):
    """An encoder alone, under the name it has in the whole model: same parameter names, so same initial values."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder


def build_model(experiment: ExperimentConfig, device: str = "cpu") -> Built:
    """The experiment's model with its initial (or hub) weights; `device="meta"` for shapes alone.

    Raises:
        ConfigError: a slot that is not filled, a file or hub id that cannot be read, components that do not fit.
    """
    tokenizer = image_tokenizer(load_tokenizer(_choice(experiment, "language_model").config))
    with torch.device(device), no_init_weights():
        model = FlorenceVLForConditionalGeneration(model_config(experiment, tokenizer))
    if device != "meta":
        initialize(model, experiment.seed)
    model.tie_weights()
    if device != "meta":
        for component in (model.encoder, model.language_model):
            component.load_pretrained()
    return Built(model, tokenizer)


def model_config(experiment: ExperimentConfig, tokenizer: Any) -> FlorenceVLConfig:
    """The self-contained configuration of the experiment's model."""
    entries = {slot: _resolved(_choice(experiment, slot)).as_dict() for slot in COMPONENTS}
    return FlorenceVLConfig(
        **entries | {"language_model": {**entries["language_model"], "model": {}}},
        normalize_sources=experiment.normalize.sources,
        normalize_output=experiment.normalize.output,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        text_config=dict(entries["language_model"]["model"]),
    )


def build_encoder(experiment: ExperimentConfig, device: str = "cpu") -> EncoderModel:
    """The experiment's encoder alone, with the values it has inside the whole model of the same seed."""
    choice = _resolved(_choice(experiment, "encoder"))
    with torch.device(device), no_init_weights():
        model = EncoderModel(choice.component(choice.config))
    if device != "meta":
        initialize(model, experiment.seed)
        model.encoder.load_pretrained()
    return model


def image_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer with the image placeholder among its special tokens and a pad token."""
    if tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) in (None, tokenizer.unk_token_id):
        tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(folder: Path) -> Built:
    """A model saved by a run (safetensors, its configuration and tokenizer)."""
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder} holds no saved model (config.json is missing)")
    model = FlorenceVLForConditionalGeneration.from_pretrained(folder, use_safetensors=True)
    return Built(model.eval(), AutoTokenizer.from_pretrained(folder))


def _choice(experiment: ExperimentConfig, slot: str) -> Choice:
    choice = getattr(experiment, slot)
    if choice is None:
        raise ConfigError(f"{slot}: the experiment fills no such slot, write for instance `{slot}: <name>`")
    return choice


def _resolved(choice: Choice) -> Choice:
    resolve = getattr(choice.component, "resolve", None)
    return Choice(choice.slot, choice.name, resolve(choice.config)) if resolve else choice
