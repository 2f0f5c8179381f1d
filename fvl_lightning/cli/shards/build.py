"""`fvl shards build`: image-text data of another format to shards."""

import logging
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn

from datamodules.building.config import BuildConfig
from datamodules.hub.address import is_hub
from datamodules.storage.shard_paths import TO_VALIDATE_ON
from fvl_lightning.core.config.base_files import COMMAND_LINE
from fvl_lightning.core.config.loading import load_config, merge_layers
from fvl_lightning.core.errors import UserError
from fvl_lightning.core.terminal import (
    bytes_in_words,
    counted_table,
    duration,
    progress,
    progress_text,
    terminal,
)

if TYPE_CHECKING:
    from datamodules.building.manifest import BuildProgress, Manifest

log = logging.getLogger(__name__)

OTHER_NAMES = {"val", "valid", "dev", "eval"}
"""What the split `validation` is called elsewhere."""

Recipe = Annotated[
    str,
    typer.Argument(
        help="Recipe (.yaml), hub:owner/name of a dataset in Parquet on the Hugging Face hub, or a source's name (`fvl "
        "list source`).",
        metavar="RECIPE",
    ),
]


def build(
    recipe: Recipe,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value words, such as output=shards/mine.")] = None,
    part: Annotated[str | None, typer.Option(help="i/n: build the i-th of n parts, one per machine.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Processes that read and check; one per core.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Build anew; replaces a finished build at the end.")] = False,
) -> None:
    """Build shards of a data set in another format; started again, a stopped build goes on.

    Example: `fvl shards build llava_json source.file=a.json source.images=photos output=shards/mine --processes 4`

    Example: `fvl shards build hub:HuggingFaceM4/the_cauldron:chartqa output=shards/chartqa`
    """
    words = [*(overrides or ())]
    words += [f"part={part}"] if part is not None else []
    words += [f"processes={processes}"] if processes is not None else []
    config = read_recipe(recipe, words)
    from datamodules.building.output import Output

    for split in OTHER_NAMES & config.splits.keys():
        log.warning("splits: training reads the split validation, and will not look for %s", split)
    manifest = _build(config, fresh)
    console = terminal()
    if manifest.already_complete:
        known = "its source has not changed" if manifest.sources else "whether its source has changed is not known"
        console.print(f"{config.output} was complete already, and {known}; nothing was done", soft_wrap=True)
    _show(manifest, config, console)
    output = Output(config.output, config.part)
    console.print(f"manifest: {config.output}/{output.manifest}", soft_wrap=True)
    if manifest.refused:
        console.print(f"refused rows: {config.output}/{output.refusals}", soft_wrap=True)
    if "validation" not in config.splits and config.part == "1/1":
        log.warning("%s has no split validation, which training needs: %s", config.output, TO_VALIDATE_ON)


def read_recipe(recipe: str, words: list[str]) -> BuildConfig:
    """The checked configuration of a recipe's file, of a dataset of the hub, or of a source by its name.

    Args:
        words: key=value over it.
    """
    if is_hub(recipe):
        hub = {"source": {"name": "parquet", "file": recipe}}
        return merge_layers(BuildConfig, [(COMMAND_LINE, hub)], words, COMMAND_LINE)
    if Path(recipe).suffix in (".yaml", ".yml") or "/" in recipe:
        return load_config(BuildConfig, Path(recipe), words)
    return merge_layers(BuildConfig, [(COMMAND_LINE, {"source": {"name": recipe}})], words, COMMAND_LINE)


def _build(config: BuildConfig, fresh: bool) -> "Manifest":
    """Builds with a bar on standard error, on a terminal only."""
    from datamodules.building.builder import build_shards

    with progress(BarColumn(), MofNCompleteColumn(), progress_text("fields[counts]")) as bar:
        task = bar.add_task("building, chunks", total=None, counts="")

        chunks_in_all = _counted(config) if bar.console.is_terminal else []

        def show(now: "BuildProgress") -> None:
            now = replace(now, chunks_in_all=next(iter(chunks_in_all), now.chunks_in_all))
            left = "" if now.seconds_left is None else f", {duration(now.seconds_left)} left"
            rate = f"{now.images_per_second:.0f} images/s"
            counts = f"{now.samples:,} samples, {rate}, {now.refused:,} refused{left}"
            bar.update(task, completed=now.chunks, total=now.chunks_in_all, counts=counts)

        return build_shards(config, show, fresh)


def _counted(config: BuildConfig) -> list[int]:
    """A list that will have the number of chunks this part builds, once a thread of its own has counted them.

    For the time left alone: most sources have to look through their files for it, much faster than a build does. A
    source on the network is not asked twice.
    """
    first, parts = (int(number) for number in config.part.split("/"))
    counted: list[int] = []

    def count() -> None:
        with suppress(UserError, OSError):  # the build itself will tell
            source = config.source.component(config.source.config)
            if source.remote:
                return
            chunks = sum(1 for _ in source.chunks())
            counted.append(len(range(first - 1, chunks, parts)))

    if config.source is not None:
        threading.Thread(target=count, daemon=True).start()
    return counted


def _show(manifest: "Manifest", config: BuildConfig, console: Console) -> None:
    table = counted_table(("split", "shards", "samples", "images", "bytes"))
    for split, shards in sorted(manifest.shards.items()):
        sums = (sum(shard.samples for shard in shards), sum(shard.images for shard in shards))
        size = bytes_in_words(sum(shard.bytes for shard in shards))
        table.add_row(split, f"{len(shards):,}", *(f"{number:,}" for number in sums), size)
    console.print(table)
    if manifest.refused:
        refused = counted_table(("refused because of", "rows"))
        for reason, count in sorted(manifest.refused.items(), key=lambda item: -item[1]):
            refused.add_row(reason, f"{count:,}")
        console.print(refused)
    if manifest.passed_over:
        from datamodules.building.manifest import in_words

        line = f"passed over, since it says nothing to training: {in_words(manifest.passed_over)}"
        console.print(line, soft_wrap=True)
