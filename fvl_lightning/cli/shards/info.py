"""`fvl shards info`: what is in a set of shards, in numbers."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from fvl_lightning.cli.shards.options import Paths, Processes, Tokenizer
from fvl_lightning.core.atomic import atomic_write
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.terminal import bytes_in_words, counted_table, plural, progress_bar, terminal

NOT_SUMMED = ("width", "height")
"""Measures of which a total would say nothing."""
COUNTS = {
    "sources": ("source", "samples"),
    "extensions": ("extension", "images"),
    "unusable": ("cannot be used", "samples"),
}
"""What is counted by name, and the two columns of its table."""
ODDITIES = {
    "empty_answers": "answers or captions are empty: they teach to say nothing",
    "duplicates": "samples are the same as an earlier one, in text and images",
}
"""What can be used, but seldom is meant."""

SHOWN = 12
"""Rows of such a table, the most frequent first; the JSON has all."""


def info(
    paths: Paths,
    tokenizer: Tokenizer = None,
    processes: Processes = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the numbers to this file.")] = None,
) -> None:
    """Count what is in shards: samples, image sizes, lengths of text, sources.

    Example: `fvl shards info shards/mine --tokenizer data/demo/tokenizer --json statistics.json`
    """
    if json_file is not None and not json_file.parent.is_dir():
        raise ConfigError(f"--json: there is no folder {json_file.parent}")
    from datamodules.inspection.statistics import collect_statistics
    from datamodules.storage.sample_store import SampleStore
    from datamodules.storage.shard_cache import shard_cache
    from datamodules.storage.shard_paths import expand_shards
    from fvl_lightning.modeling.processing.conversation_encoder import open_conversation_encoder

    store = SampleStore(expand_shards(paths), "all", shard_cache())
    encoder = None if tokenizer is None else open_conversation_encoder(tokenizer, tokens_per_image=0)
    with progress_bar("reading, samples", len(store)) as progress:
        summary = collect_statistics(store, encoder, processes, progress).summary()
    _show(summary, terminal())
    if json_file is not None:
        with atomic_write(json_file) as tmp_path:
            tmp_path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def _show(summary: dict[str, Any], console: Console) -> None:
    from datamodules.inspection.statistics import MEASURES, PERCENTILES

    there = ", ".join(plural(summary[name], name.removesuffix("s")) for name in ("shards", "samples", "images"))
    console.print(f"{there}, {bytes_in_words(summary['bytes'])}", soft_wrap=True)
    named = {0: "min", 50: "median", 100: "max"}
    table = Table(box=box.SIMPLE)
    table.add_column("")
    for column in ("total", "mean", *(named.get(p, f"{p} %") for p in PERCENTILES)):
        table.add_column(column, justify="right", no_wrap=True)
    for name, values in summary["measures"].items():
        points = (_short(values[f"p{percentile}"]) for percentile in PERCENTILES)
        total = "" if name in NOT_SUMMED else _short(values["total"])
        mean = values["mean"]
        table.add_row(MEASURES[name], total, f"{mean:.1f}" if mean < 1000 else _short(mean), *points)
    console.print(table)
    for name, words in ODDITIES.items():
        if summary[name]:
            console.print(f"{summary[name]:,} {words}", soft_wrap=True)
    for name, columns in COUNTS.items():
        counts = summary[name]
        if not counts:
            continue
        counted = counted_table(columns)
        for value, count in list(counts.items())[:SHOWN]:
            counted.add_row(value, f"{count:,}")
        if len(counts) > SHOWN:
            counted.add_row(f"{len(counts) - SHOWN:,} more", f"{sum(list(counts.values())[SHOWN:]):,}")
        console.print(counted)


def _short(number: float) -> str:
    """A number of at most six letters, so that the table fits into 80 columns; --json has all digits."""
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 10 * scale or (number >= scale and scale > 1e3):
            return f"{number / scale:.0f}{unit}" if number >= 100 * scale else f"{number / scale:.1f}{unit}"
    return f"{number:,.0f}"
