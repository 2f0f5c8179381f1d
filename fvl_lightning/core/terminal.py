"""The terminal: text is written as it is, where Rich would take [r=8] of a name for markup and :star: for a picture."""

from rich.console import Console
from rich.progress import Progress, ProgressColumn, TextColumn
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
