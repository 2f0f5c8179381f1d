"""Florence-2's files, in a folder or on the hub, in transformers' native layout or Microsoft's own; no code is run."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer, BartConfig, Florence2Config, Florence2ForConditionalGeneration, Florence2Model
from transformers.utils.hub import cached_file

from fvl_lightning.core.errors import ConfigError, DataError, first_line
from fvl_lightning.core.pretrained import check_number_types, loading_problem, quiet_loading
from fvl_lightning.core.weight_files import LAYOUTS, indexed_names, read_json, read_weights
from fvl_lightning.encoders.florence2_original import Renamed, add_tokens, check_original, is_original, original_sizes
from fvl_lightning.encoders.florence2_original import renamed as renamed_original

MODEL_TYPE = "florence2"
IMAGE_SIZE = 768
"""Where no preprocessor_config.json says otherwise."""
EXAMPLES = "florence-community/Florence-2-large-ft or microsoft/Florence-2-large-ft"


def read_config(source: str, revision: str | None) -> dict[str, Any]:
    """The config.json of a Florence-2 in either layout; ConfigError where there is none or it is another model's."""
    try:
        config = _model_config(source, revision)
    except (OSError, ValueError) as error:
        raise _unreadable(source, error) from None
    if config is None:
        raise ConfigError(f"encoder: {source} could not be read: it has no config.json")
    if config.get("model_type") != MODEL_TYPE:
        raise ConfigError(
            f"encoder.pretrained: {source} is a model of type '{config.get('model_type')}', expected a Florence-2 "
            f"('{MODEL_TYPE}'), such as {EXAMPLES}"
        )
    return config


def read_sizes(source: str, revision: str | None) -> dict[str, Any]:
    """Florence2Config's fields, whichever the layout; errors as of read_config, DataError where fields are missing."""
    config = read_config(source, revision)
    if is_original(config):
        check_original(config, f"the config.json of {source}")
        return original_sizes(config)
    try:
        return Florence2Config.from_pretrained(source, revision=revision).to_dict()
    except Exception as error:  # each configuration class refuses values in its own way
        raise _unreadable(source, error) from None


def read_tokenizer(source: str, revision: str | None) -> Any:
    """A tokenizer, with its location tokens where it is an original Florence-2's; ConfigError where it can't be read.

    The original's folder leaves it to its processor to add them, and names no class that transformers has.
    """
    try:
        config = _model_config(source, revision) or {}
    except (OSError, ValueError) as error:
        raise _unreadable(source, error) from None
    options = {"config": BartConfig()} if is_original(config) else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, **options)
    except Exception as error:  # each tokenizer class refuses broken files in its own way
        raise _unreadable(source, error) from None
    if is_original(config):
        check_original(config, f"the config.json of {source}")
        add_tokens(tokenizer, config["text_config"]["vocab_size"])
    return tokenizer


def read_values(source: str, revision: str | None, keep_decoder: bool) -> Renamed:
    """The weights under Florence2Encoder's names, whichever the layout.

    Raises:
        ConfigError: no weights, or a native checkpoint that lacks values, or has others than its model.
        DataError: broken files.
    """
    if is_original(read_config(source, revision)):
        return renamed_original(read_weights(_weights_folder(source, revision)), keep_decoder)
    whole = _native_model(source, revision, keep_decoder)
    parts = {
        "vision_tower": whole.vision_tower,
        "image_projector": whole.multi_modal_projector,
        "text_encoder": whole.language_model.encoder,
    }
    if keep_decoder:
        whole.language_model.decoder.embed_tokens = None  # the encoder's table serves both
        parts["decoder"] = whole.language_model.decoder
    values: dict[str, Tensor] = {
        f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()
    }
    return {name: (name, value) for name, value in values.items()}


def image_size_of(source: str, revision: str | None = None) -> int:
    """Pixels per side of a Florence-2's images; errors as of read_config and read_image_size."""
    read_config(source, revision)
    try:
        path = _found(source, "preprocessor_config.json", revision)
    except (OSError, ValueError) as error:
        raise _unreadable(source, error) from None
    return IMAGE_SIZE if path is None else read_image_size(path.parent)


def read_image_size(folder: Path) -> int:
    """Pixels per side, from preprocessor_config.json where there is one; DataError for images that are not square."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return IMAGE_SIZE
    size = read_json(path).get("size")
    if not isinstance(size, dict) or not isinstance(size.get("height"), int) or size["height"] != size.get("width"):
        raise DataError(f"{path} says size {size}, expected a height and a width that are equal")
    return size["height"]


def _model_config(source: str, revision: str | None) -> dict[str, Any] | None:
    path = cached_file(source, "config.json", revision=revision)
    return None if path is None else read_json(Path(path))


def _native_model(source: str, revision: str | None, keep_decoder: bool) -> Florence2Model:
    try:
        with quiet_loading():
            whole, report = Florence2ForConditionalGeneration.from_pretrained(
                source,
                revision=revision,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _unreadable(source, error) from None
    if problem := loading_problem(report):
        raise ConfigError(f"encoder.pretrained: {source} {problem}")
    check_number_types(source, revision, whole.state_dict(), "encoder.pretrained")
    if keep_decoder:
        _check_one_table(whole, source)
    return whole.model


def _check_one_table(whole: Florence2ForConditionalGeneration, source: str) -> None:
    """ConfigError where encoder, decoder and head do not share their table, as transformers allows; ours is one."""
    words = whole.model.language_model
    table = words.encoder.embed_tokens.weight
    for name, held in (("decoder.embed_tokens", words.decoder.embed_tokens), ("lm_head", whole.lm_head)):
        if not torch.equal(held.weight, table):
            raise ConfigError(
                f"encoder.pretrained: {source} holds other values in {name}.weight than in the table of the prompts' "
                "tokens, but a Florence-2 has one table for both; take a file without them, or write decoder=drop"
            )


def _weights_folder(source: str, revision: str | None) -> Path:
    """The folder of the weights, fetched where `source` is a hub id."""
    if Path(source).is_dir():
        return Path(source)
    try:
        for file in LAYOUTS:
            index = _found(source, f"{file}.index.json", revision)
            if index is not None:
                for name in indexed_names(index):
                    _found(source, name, revision)
                return index.parent
            whole = _found(source, file, revision)
            if whole is not None:
                return whole.parent
    except (OSError, ValueError) as error:
        raise _unreadable(source, error) from None
    raise ConfigError(f"encoder: {source} could not be read: it has no weights, expected {' or '.join(LAYOUTS)}")


def _found(source: str, name: str, revision: str | None) -> Path | None:
    """A file of a model that is known to be there, None where it has none of that name."""
    path = cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if path is None else Path(path)


def _unreadable(source: str, error: Exception) -> ConfigError:
    return ConfigError(f"encoder: {source} could not be read: {first_line(error)}")
