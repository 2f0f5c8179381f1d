"""What the verbs of `fvl shards` have in common: how shards are named, tokenizers opened, and progress shown."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from huggingface_hub.utils import HFValidationError, validate_repo_id
from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from transformers import AutoTokenizer

from datamodules.encoding.conversation import ConversationEncoder
from datamodules.storage.remote import ShardCache, default_cache
from datamodules.storage.sample_store import SampleStore
from datamodules.storage.shard_paths import expand_shards
from fvl_lightning.core.errors import ConfigError, first_line
from fvl_lightning.core.terminal import progress
from fvl_lightning.modeling.build import IMAGE_TOKEN, image_tokenizer

Paths = Annotated[
    list[str],
    typer.Argument(help="Folders, tars, globs, braces such as 'train-{000000..000009}.tar', or URLs."),
]
Processes = Annotated[int | None, typer.Option(min=1, help="Processes to work in; one per core if left out.")]
Tokenizer = Annotated[str | None, typer.Option(help="Folder or hub id of a tokenizer with a chat template.")]


CACHE_GIGABYTES = 50.0
"""Disk that copies of remote shards may take here."""


def shard_cache() -> ShardCache:
    """Where copies of remote shards are kept."""
    return default_cache(CACHE_GIGABYTES)


def open_store(paths: list[str]) -> SampleStore:
    """The samples of all shards that are named."""
    return SampleStore(expand_shards(paths), "all", shard_cache())


def open_encoder(tokenizer: str, tokens_per_image: int) -> ConversationEncoder:
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


@contextmanager
def progress_bar(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on standard error while it lasts, on a terminal only; call what it gives with the number newly done."""
    with progress(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.advance(task, done)


def bytes_in_words(size: float) -> str:
    """A number of bytes for a table."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size:.0f} bytes"


def plural(count: int, word: str) -> str:
    """The number with its word."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds for a bar, such as 1:05:09."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def counted_table(columns: Sequence[str]) -> Table:
    """A table whose first column is words and whose others are numbers."""
    table = Table()
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table
