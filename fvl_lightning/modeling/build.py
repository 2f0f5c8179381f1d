"""Builds a model from an experiment, and loads one from a saved folder."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.initialization import no_init_weights

from fvl_lightning.core.config.loading import Choice, choose
from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.core.experiment import COMPONENTS, ExperimentConfig
from fvl_lightning.core.pretrained import loading_problem, open_saved, quiet_loading
from fvl_lightning.core.weight_files import check_finite, match_weights, read_json, read_weights, some_names
from fvl_lightning.encoders.base import Encoder
from fvl_lightning.language_models.causal import load_tokenizer
from fvl_lightning.modeling.adapters.folders import attach_adapter, base_of, is_adapter_folder
from fvl_lightning.modeling.configuration import FlorenceVLConfig, read_model_config
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration
from fvl_lightning.modeling.initialization import initialize
from fvl_lightning.modeling.loss import token_loss
from fvl_lightning.modeling.processing.processor import (
    IMAGE_TOKEN,
    FlorenceVLProcessor,
    image_tokenizer,
    read_processor,
)
from fvl_lightning.modeling.stopping import set_stop_tokens

PROCESSOR_FILE = "processor_config.json"
MAX_LAYERS = 2000
"""A limit that no model reaches, so that a broken configuration is not built for hours."""
SMALL_MODEL = 10**8
"""Parameters of a model that fits anywhere."""
ENCODER_FILE = "encoder.json"
"""The resolved Config of an encoder that was saved by itself."""


@dataclass
class BuiltModel:
    """A model and its tokenizer."""

    model: FlorenceVLForConditionalGeneration
    tokenizer: Any


@dataclass
class LoadedModel(BuiltModel):
    """A saved model in eval mode, with its processor."""

    processor: FlorenceVLProcessor


class EncoderModel(nn.Module):
    """An encoder without the rest of the model; names of parameters, and so initial values, stay those of the model."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder: Any = encoder  # plugins may have methods of their own

    def forward(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the sum of cross entropies, and the numbers of target tokens and of correct ones.

        Training calls this forward, in which FSDP gathers sharded parameters.

        Args:
            images: [I, 3, P, P].
            targets: token ids [I, T, L] for T prompts, IGNORE_INDEX after the end.
        """
        encoder = self.encoder
        vocabulary = encoder.model_config.text_config.vocab_size
        loss = token_loss(encoder.decode(images, targets), targets, encoder.logits, vocabulary)
        return loss.sum, loss.tokens, loss.correct


def build_model(
    experiment: ExperimentConfig,
    device: str = "cpu",
    kind: type[FlorenceVLForConditionalGeneration] = FlorenceVLForConditionalGeneration,
) -> BuiltModel:
    """Returns the experiment's model, of the class `kind`, with its initial or pretrained weights.

    On device "meta" it has no values.

    Raises:
        ConfigError: a slot is empty, a file or hub id cannot be read, or components do not fit.
    """
    tokenizer = image_tokenizer(load_tokenizer(_choice(experiment, "language_model").config))
    with torch.device(device), no_init_weights():
        model = kind(model_config(experiment, tokenizer))
    check_vocabulary(tokenizer, model, "language_model.tokenizer")
    if device != "meta":
        initialize(model, experiment.seed, [model.language_model] if model.language_model.fills_all_weights else [])
    model.tie_weights()
    if device != "meta":
        for component in (model.encoder, model.language_model):
            component.load_pretrained()
        model.language_model.check()
    set_stop_tokens(model, tokenizer)
    return BuiltModel(model, tokenizer)


def model_config(experiment: ExperimentConfig, tokenizer: Any) -> FlorenceVLConfig:
    """Returns the self-contained configuration of the experiment's model."""
    entries = {slot: _resolved(_choice(experiment, slot)).as_dict() for slot in COMPONENTS}
    return FlorenceVLConfig(
        **entries | {"language_model": {**entries["language_model"], "model": {}}},
        normalize_sources=experiment.normalize.sources,
        normalize_output=experiment.normalize.output,
        source_dropout=experiment.source_dropout,
        fused_sources=experiment.fused_sources,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        text_config=dict(entries["language_model"]["model"]),
    )


def build_encoder(experiment: ExperimentConfig, device: str = "cpu") -> EncoderModel:
    """Returns the experiment's encoder by itself, with the values that it has in the whole model of the same seed."""
    choice = _resolved(_choice(experiment, "encoder"))
    with torch.device(device), no_init_weights():
        model = EncoderModel(choice.component(choice.config))
    if device != "meta":
        initialize(model, experiment.seed)
        model.encoder.load_pretrained()
    return model


def load_encoder(folder: Path, name: str = "florence2") -> EncoderModel:
    """Loads an encoder that the stage encoder_pretrain saved, in eval mode.

    Args:
        folder: its folder.
        name: the registered name of the encoder.

    Raises:
        ConfigError: the configuration has fields that the encoder does not have.
        DataError: files are missing or broken, or weights do not fit the configuration.
    """
    fields = read_json(folder / ENCODER_FILE)
    choice = choose("encoder", {**fields, "name": name}, f"encoder in {folder / ENCODER_FILE}")
    with no_init_weights():
        model = EncoderModel(choice.component(choice.config))
    weights = {key: (key, value) for key, value in read_weights(folder).items()}
    model.load_state_dict(match_weights(weights, model.state_dict(), str(folder)))
    return model.eval()


def load_model(folder: Path, base: Path | None = None) -> LoadedModel:
    """Loads the model folder of a run, an import or an export: safetensors, configuration and processor.

    Args:
        folder: the folder of a model or of an adapter.
        base: the folder of an adapter's base, if it is not the one that the adapter names.

    Raises:
        ConfigError: the configuration has fields that a component does not have.
        DataError: files are missing or broken, or lack weights.
    """
    adapter = is_adapter_folder(folder)
    for name in () if adapter else ("config.json", PROCESSOR_FILE):
        if not (folder / name).is_file():
            raise DataError(f"{folder} holds no saved model ({name} is missing)")
    model_folder = base_of(folder, base) if adapter else folder
    model = load_model(model_folder).model if adapter else _whole_model(folder)
    if adapter:
        attach_adapter(model, folder)
    # A folder that peft wrote holds only the adapter.
    processor = read_processor(folder if (folder / PROCESSOR_FILE).is_file() else model_folder)
    check_vocabulary(processor.tokenizer, model, f"the tokenizer in {folder}")
    set_stop_tokens(model, processor.tokenizer)  # folders of earlier versions list only the tokenizer's eos
    return LoadedModel(model.eval(), processor.tokenizer, processor)


def check_size(config: FlorenceVLConfig, folder: Path) -> None:
    """Checks that a configuration is of a model about as large as the weights beside it, before it is built.

    Raises:
        DataError: the weights cannot be read, or the configuration is of a model many times as large.
    """
    weights = read_weights(folder)
    layers = max(_layer_counts(config.to_dict()), default=0)
    if layers > MAX_LAYERS:
        raise DataError(f"the configuration in {folder} is of a model of {layers:,} layers, more than {MAX_LAYERS:,}")
    held = sum(value.numel() for value in weights.values())
    needed = parameter_count(empty_model(config))
    if needed > 2 * held + SMALL_MODEL:
        raise DataError(
            f"the configuration in {folder} is of a model of {needed:,} parameters, and its files hold {held:,}"
        )


def _layer_counts(values: Any) -> Iterator[int]:
    """Yields the numbers of layers in a configuration, whatever the architecture calls them."""
    for key, value in values.items() if isinstance(values, Mapping) else ():
        if any(part in str(key) for part in ("layer", "depth", "block")):
            yield from (one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int))
        yield from _layer_counts(value)


def empty_model(config: FlorenceVLConfig) -> FlorenceVLForConditionalGeneration:
    """Returns the model of a configuration on the meta device: names, shapes and ties without values."""
    with torch.device("meta"), no_init_weights():
        model = FlorenceVLForConditionalGeneration(config)
    model.tie_weights()
    return model


def parameter_count(model: nn.Module) -> int:
    """Returns the number of parameters, as transformers counts them: tied ones once, without buffers."""
    return sum(parameter.numel() for parameter in model.parameters())


def check_vocabulary(tokenizer: Any, model: FlorenceVLForConditionalGeneration, where: str) -> None:
    """Checks that the token embeddings have a row for every token but the image placeholder, which is never embedded.

    Raises:
        ConfigError: a token has no row, or the tokenizer has no padding token.
    """
    if tokenizer.pad_token_id is None:
        raise ConfigError(f"{where}: it has neither a pad_token nor an eos_token, write one into tokenizer_config.json")
    table: Any = model.get_input_embeddings().weight
    rows, image = table.shape[0], model.config.image_token_id
    beyond = sorted((i, token) for token, i in tokenizer.get_vocab().items() if i >= rows and i != image)
    if beyond:
        names = some_names([f"'{token}' with id {i}" for i, token in beyond])
        raise ConfigError(
            f"{where}: the model's token table has {rows} rows, and none for {names}; take the tokenizer that the "
            "model was trained with, or a model whose table was grown for these tokens"
        )


def _whole_model(folder: Path) -> FlorenceVLForConditionalGeneration:
    check_size(read_model_config(folder), folder)
    with quiet_loading():
        model, report = open_saved(
            FlorenceVLForConditionalGeneration, folder, "the model", DataError,
            use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    if problem := loading_problem(report):
        raise DataError(f"the model in {folder} {problem}")
    check_finite(dict(model.named_parameters()), f"the model in {folder}")
    return model


def _choice(experiment: ExperimentConfig, slot: str) -> Choice:
    choice = getattr(experiment, slot)
    if choice is None:
        raise ConfigError(f"{slot}: the experiment sets no {slot}, write for instance `{slot}: <name>`")
    return choice


def _resolved(choice: Choice) -> Choice:
    resolve = getattr(choice.component, "resolve", None)
    return Choice(choice.slot, choice.name, resolve(choice.config)) if resolve else choice
