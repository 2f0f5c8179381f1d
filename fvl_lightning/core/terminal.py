"""The terminal: text is written as it is, where Rich would take [r=8] of a name for markup and :star: for a picture."""

import logging
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text


def terminal(stderr: bool = False, quiet: bool = False) -> Console:
    """The console that all commands and callbacks write to, tables too; what has a style is a rich Text."""
    return Console(stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False)


def say(words: str, stderr: bool = False) -> None:
    """Writes a line, however long, without breaking it."""
    terminal(stderr).print(words, soft_wrap=True)


def say_error(words: str, who: str = "") -> None:
    """Writes what went wrong to standard error; `who` is the rank that says so, where there are several."""
    terminal(stderr=True).print(Text.assemble((f"error{who}:", "bold red"), f" {words}"), soft_wrap=True)


def progress(*columns: ProgressColumn, stderr: bool = True, console: Console | None = None) -> Progress:
    """A bar that is taken down at the end, the task's description before `columns`; nothing where no terminal is."""
    console = console or terminal(stderr)
    return Progress(
        progress_text("description"), *columns, console=console, transient=True, disable=not console.is_terminal
    )


def progress_text(field: str) -> TextColumn:
    """A column with the attribute `field` of a task, such as description or fields[said]."""
    return TextColumn(f"{{task.{field}}}", markup=False)


QUIET_LIBRARIES = ("lightning.pytorch", "lightning.fabric", "alembic", "mlflow", "huggingface_hub")
"""Libraries of which errors alone are shown."""


def quiet_libraries() -> None:
    """Shows the kit's log lines in one form, and of libraries errors or warnings only, without progress bars.

    It holds for libraries that are imported before and after: those that set their levels when they are imported read
    these variables, or write to the root logger's handler.
    """
    variables = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_VERBOSITY": "error"}
    for variable, value in {**variables, "MLFLOW_LOGGING_LEVEL": "ERROR"}.items():
        os.environ.setdefault(variable, value)
    if (transformers_logging := sys.modules.get("transformers.utils.logging")) is not None:
        transformers_logging.disable_progress_bar()
    handler = RichHandler(console=terminal(stderr=True), show_path=False, show_time=False, markup=False)
    handler.addFilter(lambda record: record.levelno >= logging.ERROR or not record.name.startswith(QUIET_LIBRARIES))
    who = f"rank {own_rank()}: " if own_rank() else ""
    logging.basicConfig(level=logging.WARNING, format=f"{who}%(message)s", handlers=[handler], force=True)
    for name in ("fvl_lightning", "datamodules"):
        logging.getLogger(name).setLevel(logging.INFO)
    if own_rank() > 0:  # it sees what the first rank sees, but for its own samples
        logging.getLogger("fvl_lightning").setLevel(logging.ERROR)
        logging.getLogger("datamodules").setLevel(logging.WARNING)
    for name in QUIET_LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)


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


_TURNS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Marks that change the direction of writing for all that follows."""


def visible(text: str) -> str:
    """The text with what could steer a terminal (or can't be written at all) as symbols; lines and tabs stay."""
    return "".join(_symbol(letter) for letter in text)


def _symbol(letter: str) -> str:
    if letter in "\n\t" or (unicodedata.category(letter) not in ("Cc", "Cs") and letter not in _TURNS):
        return letter
    # From U+2400 on there is a picture of every ASCII control character.
    return chr(0x2400 + ord(letter)) if ord(letter) < 0x20 else "\N{REPLACEMENT CHARACTER}"


def own_rank() -> int:
    """The number of this process among those that were started together."""
    return int(os.environ.get("RANK", 0))


def started_ranks() -> int:
    """How many processes were started together."""
    return int(os.environ.get("WORLD_SIZE", 1))
