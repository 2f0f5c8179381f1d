"""Florence-2's files, from a folder or the hub, in transformers' native layout or Microsoft's; no code is run."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, BartConfig, Florence2Config, Florence2ForConditionalGeneration, Florence2Model
from transformers.utils.hub import cached_file

from fvl_lightning.core.errors import ConfigError, DataError, first_line
from fvl_lightning.core.pretrained import check_number_types, loading_problem, open_saved, quiet_loading
from fvl_lightning.core.weight_files import LAYOUTS, indexed_names, read_json, read_weights, some_names
from fvl_lightning.encoders.florence2_original import (
    RenamedWeights,
    add_tokens,
    check_original,
    is_original,
    original_sizes,
)
from fvl_lightning.encoders.florence2_original import rename_weights as renamed_original

MODEL_TYPE = "florence2"
IMAGE_SIZE = 768
"""The image size without a preprocessor_config.json."""
EXAMPLES = "florence-community/Florence-2-large-ft or microsoft/Florence-2-large-ft"


def read_config(source: str, revision: str | None) -> dict[str, Any]:
    """Returns the config.json of a Florence-2; raises ConfigError if there is none, or it is of another model."""
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
    """Returns the fields of Florence2Config for either layout.

    Raises:
        ConfigError: see `read_config`.
        DataError: fields are missing.
    """
    config = read_config(source, revision)
    if is_original(config):
        check_original(config, f"the config.json of {source}")
        return original_sizes(config)
    return open_saved(Florence2Config, source, "encoder", revision=revision).to_dict()


def read_tokenizer(source: str, revision: str | None) -> Any:
    """Returns a tokenizer; that of an original Florence-2 gets its location tokens.

    The original's processor, whose class transformers does not have, adds these tokens.

    Raises:
        ConfigError: the tokenizer cannot be read.
    """
    try:
        config = _model_config(source, revision) or {}
    except (OSError, ValueError) as error:
        raise _unreadable(source, error) from None
    options = {"config": BartConfig()} if is_original(config) else {}
    tokenizer = open_saved(AutoTokenizer, source, "encoder", revision=revision, **options)
    if is_original(config):
        check_original(config, f"the config.json of {source}")
        add_tokens(tokenizer, config["text_config"]["vocab_size"])
    return tokenizer


def read_values(source: str, revision: str | None, keep_decoder: bool) -> RenamedWeights:
    """Returns the weights under the names of Florence2Encoder, for either layout.

    Raises:
        ConfigError: there are no weights, or a native checkpoint lacks values or has unknown ones.
        DataError: files are broken.
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
        whole.language_model.decoder.embed_tokens = None  # both share the encoder's token embeddings
        parts["decoder"] = whole.language_model.decoder
    values: dict[str, Tensor] = {
        f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()
    }
    return {name: (name, value) for name, value in values.items()}


def find_image_size(source: str, revision: str | None = None) -> int:
    """Returns the pixels per side of a Florence-2's images; its errors are those of read_config and read_image_size."""
    read_config(source, revision)
    try:
        path = _find_file(source, "preprocessor_config.json", revision)
    except (OSError, ValueError) as error:
        raise _unreadable(source, error) from None
    return IMAGE_SIZE if path is None else read_image_size(path.parent)


def read_image_size(folder: Path) -> int:
    """Returns the pixels per side in preprocessor_config.json; raises DataError for images that are not square."""
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
    with quiet_loading():
        whole, report = open_saved(
            Florence2ForConditionalGeneration,
            source,
            "encoder",
            revision=revision,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    if problem := loading_problem(report):
        raise ConfigError(f"encoder.pretrained: {source} {problem}")
    check_number_types(source, revision, whole.state_dict(), "encoder.pretrained")
    if keep_decoder:
        _check_one_table(whole, source)
    return whole.model


def _check_one_table(whole: Florence2ForConditionalGeneration, source: str) -> None:
    """Raises ConfigError unless encoder, decoder and head share their token embeddings, as they must in this kit."""
    text_model = whole.model.language_model
    table = text_model.encoder.embed_tokens.weight
    for name, module in (("decoder.embed_tokens", text_model.decoder.embed_tokens), ("lm_head", whole.lm_head)):
        if not torch.equal(module.weight, table):
            raise ConfigError(
                f"encoder.pretrained: {source} holds other values in {name}.weight than in the table of the prompts' "
                "tokens, but a Florence-2 has one table for both; take a file without them, or write decoder=drop"
            )


def _weights_folder(source: str, revision: str | None) -> Path:
    """Returns the folder of the weights; downloads them from the hub if `source` is a hub id."""
    if Path(source).is_dir():
        return Path(source)
    try:
        for file in LAYOUTS:
            index = _find_file(source, f"{file}.index.json", revision)
            if index is not None:
                for name in indexed_names(index):
                    _find_file(source, name, revision)
                return index.parent
            whole = _find_file(source, file, revision)
            if whole is not None:
                return whole.parent
    except (OSError, ValueError) as error:
        raise _unreadable(source, error) from None
    raise ConfigError(f"encoder: {source} could not be read: it has no weights, expected {' or '.join(LAYOUTS)}")


def _find_file(source: str, name: str, revision: str | None) -> Path | None:
    """Returns a file of an existing model, or None if the model has no file of that name."""
    path = cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if path is None else Path(path)


def _unreadable(source: str, error: Exception) -> ConfigError:
    return ConfigError(f"encoder: {source} could not be read: {first_line(error)}")


def check_decoder_tokenizer(tokenizer: Any, text: Any) -> None:
    """Checks that a decoder of this text configuration can write the texts of a tokenizer.

    Raises:
        ConfigError: a token has no row in the token embeddings, or the end tokens differ.
    """
    rows = text.vocab_size
    beyond = sorted((i, token) for token, i in tokenizer.get_vocab().items() if i >= rows)
    if beyond:
        names = some_names([f"'{token}' with id {i}" for i, token in beyond])
        raise ConfigError(f"encoder.tokenizer: the encoder's token table has {rows} rows, and none for {names}")
    if tokenizer.eos_token_id != text.eos_token_id:
        raise ConfigError(
            f"encoder.tokenizer: its texts end with token {tokenizer.eos_token_id}, the decoder's with "
            f"{text.eos_token_id} (text_config.eos_token_id)"
        )
