"""Opens the files of a task by their format."""

from collections.abc import Sequence
from pathlib import Path

from datamodules.hub.address import HubAddress, is_hub
from datamodules.hub.files import parquet_files
from datamodules.sources.parquet_files import Place
from datamodules.sources.row_files import find_files
from datamodules.storage.remote import is_remote
from datamodules.storage.shard_paths import expand_shards
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.evaluation.task_rows.base import TaskRows
from fvl_lightning.evaluation.task_rows.json_lines import JsonRows
from fvl_lightning.evaluation.task_rows.named_images import PARQUET
from fvl_lightning.evaluation.task_rows.parquet import ParquetRows
from fvl_lightning.evaluation.task_rows.shards import ShardRows

JSON = (".json", ".jsonl", ".ndjson")
SHARD = ".tar"


def open_rows(files: Sequence[str], used: Sequence[str]) -> TaskRows:
    """Returns the rows of a task's files: entries in the given order, the matches of a glob sorted by name.

    Args:
        files: Parquet files, JSON files or shards, as paths or globs; or datasets of the hub.
        used: fields that are read although they hold lists or mappings.

    Raises:
        ConfigError: there are no files, or their formats are unknown or differ.
        DataError: a file that is absent, or that cannot be read.
    """
    if not files:
        raise ConfigError("data.files: it names no file; expected Parquet files, JSON Lines, shards or hub:owner/name")
    formats = {_format(entry) for entry in files}
    if len(formats) > 1:
        several = " and ".join(sorted(formats))
        raise ConfigError(f"data.files: {', '.join(files)} have the formats {several}; name one format")
    if formats == {SHARD}:
        return ShardRows(expand_shards(files))
    if formats == {JSON[0]}:
        return JsonRows(find_files(list(files), JSON))
    places: list[Place] = []
    for entry in files:
        places += parquet_files(_address(entry)) if is_hub(entry) else find_files(entry, (PARQUET,))
    return ParquetRows(places, used)


def _address(entry: str) -> HubAddress:
    try:
        return HubAddress.parse(entry)
    except ValueError as error:
        raise ConfigError(f"data.{error}") from None


def _format(entry: str) -> str:
    """Returns the suffix that stands for a format: .parquet, .json or .tar."""
    if is_hub(entry):
        return PARQUET
    suffix = Path(entry).suffix.lower()
    if suffix in JSON:
        return JSON[0]
    if suffix in (PARQUET, SHARD):
        return suffix
    if Path(entry).is_dir():
        for suffix in (PARQUET, SHARD):
            if any(file.suffix == suffix for file in Path(entry).iterdir()):
                return suffix
    if is_remote(entry):
        return SHARD
    allowed = ", ".join((PARQUET, *JSON, SHARD))
    raise ConfigError(f"data.files: {entry} is no file of a known format; expected {allowed}, or hub:owner/name")
