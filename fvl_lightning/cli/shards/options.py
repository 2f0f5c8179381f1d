"""What the verbs of `fvl shards` have in common: how shards are named, tokenizers opened, and progress shown."""

from pathlib import Path
from typing import Annotated, Any

import typer
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers import AutoTokenizer

from datamodules.encoding.conversation import ConversationEncoder
from datamodules.storage.sample_store import SampleStore
from datamodules.storage.shard_cache import shard_cache
from datamodules.storage.shard_paths import expand_shards
from fvl_lightning.core.errors import ConfigError, first_line
from fvl_lightning.modeling.processing.processor import IMAGE_TOKEN, image_tokenizer

Paths = Annotated[
    list[str],
    typer.Argument(help="Folders, tars, globs, braces such as 'train-{000000..000009}.tar', or URLs."),
]
Processes = Annotated[int | None, typer.Option(min=1, help="Processes to work in; one per core if left out.")]
Tokenizer = Annotated[str | None, typer.Option(help="Folder or hub id of a tokenizer with a chat template.")]


def open_samples(paths: list[str]) -> SampleStore:
    """The samples of all shards that are named."""
    return SampleStore(expand_shards(paths), "all", shard_cache())


def open_conversation_encoder(tokenizer: str, tokens_per_image: int) -> ConversationEncoder:
    """What makes tokens of texts, as in training; ConfigError where the tokenizer can't be read or used."""
    if not Path(tokenizer).is_dir():
        try:
            validate_repo_id(tokenizer)
        except HFValidationError:  # whose own words speak of the hub alone
            raise ConfigError(f"--tokenizer: there is no folder {tokenizer}, and it is no hub id") from None
    try:
        opened: Any = image_tokenizer(AutoTokenizer.from_pretrained(tokenizer))
    except (OSError, ValueError) as error:
        where = "" if Path(tokenizer).is_dir() else " is no folder and"
        raise ConfigError(f"--tokenizer: {tokenizer}{where} could not be read: {first_line(error)}") from None
    return ConversationEncoder(opened, opened.convert_tokens_to_ids(IMAGE_TOKEN), tokens_per_image)


