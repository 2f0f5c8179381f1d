"""Terminal output: consoles, messages, progress bars and tables.

Text is printed literally; by default, Rich would read [r=8] in a name as markup and :star: as an emoji. Control
characters are printed as symbols, whoever wrote them: names in a tar, answers of a model, errors of a library.
"""

import logging
import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
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
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

_HIDDEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
"""Control characters, halves of characters, and marks that change the writing direction of the following text."""


def visible(text: str) -> str:
    """Replaces control characters and unprintable ones by symbols; line breaks and tabs stay."""
    return _HIDDEN.sub(_symbol, text)


def _symbol(found: re.Match[str]) -> str:
    letter = found[0]
    # U+2400 and the following are symbols of the ASCII control characters.
    return chr(0x2400 + ord(letter)) if ord(letter) < 0x20 else "\N{REPLACEMENT CHARACTER}"


class VisibleConsole(Console):
    """A console that prints every text through `visible`; only Rich itself writes control characters."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Converts a string as Rich does; before Rich measures it and removes some control characters."""
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Renders as Rich does; this reaches texts that are no strings, such as Text and Syntax."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


class VisibleRecord(logging.LogRecord):
    """A log record with a `visible` message, for the handlers of libraries too."""

    def getMessage(self) -> str:
        """Returns the message with its arguments."""
        return visible(super().getMessage())


def terminal(stderr: bool = False, quiet: bool = False) -> Console:
    """Returns the console that commands and callbacks print to; styled output is a rich Text."""
    return VisibleConsole(stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False)


def say(message: str, stderr: bool = False) -> None:
    """Prints a message without wrapping it."""
    terminal(stderr).print(message, soft_wrap=True)


def say_error(message: str, rank: str = "") -> None:
    """Prints an error to standard error; `rank` follows the word "error", such as " on rank 1"."""
    terminal(stderr=True).print(Text.assemble((f"error{rank}:", "bold red"), visible(f" {message}")), soft_wrap=True)


def progress(*columns: ProgressColumn, stderr: bool = True, console: Console | None = None) -> Progress:
    """Returns a progress bar with the task's description before `columns`.

    It disappears at the end, and prints nothing where the output is not a terminal.
    """
    console = console or terminal(stderr)
    return Progress(
        progress_text("description"), *columns, console=console, transient=True, disable=not console.is_terminal
    )


def progress_text(field: str) -> TextColumn:
    """Returns a column with the attribute `field` of a task, such as description or fields[status]."""
    return TextColumn(f"{{task.{field}}}", markup=False)


QUIET_LIBRARIES = (
    "lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric",
    "lightning.fabric.utilities.rank_zero", "alembic", "mlflow", "huggingface_hub",
)  # fmt: skip
"""Loggers of libraries of which errors alone are shown. Lightning sets the levels of its packages when it is imported,
but not those of the modules that its messages come from."""


def quiet_libraries() -> None:
    """Sets up logging: the kit's own lines from INFO on, those of libraries from WARNING or ERROR on, no progress bars.

    This holds for libraries that are imported before or after: those that set their levels when they are imported read
    these variables, or write to the root logger's handler.
    """
    variables = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_VERBOSITY": "error"}
    variables |= {"MLFLOW_LOGGING_LEVEL": "ERROR", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    for variable, value in variables.items():
        os.environ.setdefault(variable, value)
    if (transformers_logging := sys.modules.get("transformers.utils.logging")) is not None:
        transformers_logging.disable_progress_bar()
    handler = RichHandler(console=terminal(stderr=True), show_path=False, show_time=False, markup=False)
    handler.addFilter(lambda record: record.levelno >= logging.ERROR or not record.name.startswith(QUIET_LIBRARIES))
    rank = f"rank {own_rank()}: " if own_rank() else ""
    logging.setLogRecordFactory(VisibleRecord)
    warnings.formatwarning, sys.excepthook = _visible_warning, _print_traceback
    logging.basicConfig(level=logging.WARNING, format=f"{rank}%(message)s", handlers=[handler], force=True)
    for name in ("fvl_lightning", "datamodules"):
        logging.getLogger(name).setLevel(logging.INFO)
    if own_rank() > 0:  # rank 0 logs the same, except for warnings about another rank's samples
        logging.getLogger("fvl_lightning").setLevel(logging.ERROR)
        logging.getLogger("datamodules").setLevel(logging.WARNING)
    for name in QUIET_LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)


_format_warning = warnings.formatwarning


def _visible_warning(*given: Any, **named: Any) -> str:
    return visible(_format_warning(*given, **named))


def _print_traceback(*error: Any) -> None:
    sys.stderr.write(visible("".join(traceback.format_exception(*error))))


@contextmanager
def progress_bar(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Shows a progress bar on standard error, on a terminal only; yields a function that advances it by a number."""
    with progress(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.advance(task, done)


LONG_SECONDS = 20.0
"""Where the output is not a terminal, what is under way is printed once in so many seconds."""


@contextmanager
def current_activity() -> Iterator[Callable[[str], None]]:
    """Shows what is under way, on standard error; call the yielded function with its name.

    A log file gets a line for what takes long alone, see LONG_SECONDS.
    """
    console = terminal(stderr=True)
    if console.is_terminal:
        with console.status("") as status:
            yield lambda name: status.update(Text(name))
        return
    names, ended = [""], threading.Event()
    watch = threading.Thread(target=_say_what_is_long, args=(names, ended), daemon=True, name="current activity")
    watch.start()
    try:
        yield names.append
    finally:
        ended.set()
        watch.join()


def _say_what_is_long(names: Sequence[str], ended: threading.Event) -> None:
    printed = 1
    while not ended.wait(LONG_SECONDS):
        if len(names) > printed:
            printed = len(names)
            say(f"under way: {names[-1]}", stderr=True)


def bytes_in_words(size: float) -> str:
    """Formats a number of bytes, such as 1.5 GB."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size:.0f} bytes"


def plural(count: int, word: str) -> str:
    """Formats a number with its noun, in the plural where needed, such as 3 shards."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """Formats seconds, such as 1:05:09."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def counted_table(columns: Sequence[str]) -> Table:
    """Returns a table whose first column is text and whose other columns are numbers."""
    table = Table()
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table


def own_rank() -> int:
    """Returns the global rank of this process, 0 where it was started alone."""
    return int(os.environ.get("RANK", 0))


def started_ranks() -> int:
    """Returns the number of processes that were started together."""
    return int(os.environ.get("WORLD_SIZE", 1))
