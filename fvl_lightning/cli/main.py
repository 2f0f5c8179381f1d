"""The command line `fvl`: every verb, and the one place where errors become a sentence and an exit code."""

import functools
import os
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from fvl_lightning import __version__
from fvl_lightning.cli import (
    chat,
    compare,
    doctor,
    encoder,
    evaluate,
    explain,
    generate,
    inspect,
    launch,
    mlflow,
    serve,
    train,
)
from fvl_lightning.cli.models import export, import_checkpoint
from fvl_lightning.cli.options import as_overrides, with_own_plugins
from fvl_lightning.cli.shards import app as shards
from fvl_lightning.core.errors import (
    EXIT_INTERRUPTED,
    EXIT_PEER_FAILED,
    EXIT_REQUEUE,
    EXIT_USAGE_ERROR,
    UserError,
    disk_error,
    is_lack_of_files,
    os_error_in_words,
)
from fvl_lightning.core.terminal import own_rank, quiet_libraries, say, say_error, terminal
from fvl_lightning.training.fault_tolerance.hang_detection import LostRankError, PeerFailedError
from fvl_lightning.training.fault_tolerance.process_exit import begin_exit
from fvl_lightning.training.fault_tolerance.signals import INTERRUPTED, SUPPORTED, Preempted, handle_for_command

VERSIONED = ("torch", "lightning", "transformers", "peft", "mlflow")
"""The libraries that `fvl --version` names."""

app = typer.Typer(
    help="How should a vision encoder's features enter a language model? Swap fusions in YAML and compare.\n\n"
    "Example: `fvl demo --quick`",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)


def print_versions(wanted: bool) -> None:
    """Prints the versions of the kit, Python and the libraries that change results, without importing them."""
    if not wanted:
        return
    found = [f"fvl_lightning {__version__}", f"Python {sys.version.split()[0]}"]
    for package in VERSIONED:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} is not installed")
    say("\n".join(found))
    raise typer.Exit


@app.callback()
def options(
    versions: Annotated[
        bool,
        typer.Option(
            "--version", callback=print_versions, is_eager=True, help="Print the versions of the kit and its libraries."
        ),
    ] = False,
) -> None:
    """Options of `fvl` itself."""


app.command("demo")(compare.demo)
app.command("train")(train.train)
app.command("launch")(launch.launch)
app.command("compare")(compare.compare)
app.command("encoder")(encoder.encoder)
app.command("evaluate")(evaluate.evaluate)
app.command("explain")(explain.explain)
app.command("export")(export.export)
app.command("generate")(generate.generate)
app.command("chat")(chat.chat)
app.command("serve")(serve.serve)
app.command("list")(inspect.list_components)
app.command("describe")(inspect.describe)
app.command("show")(inspect.show)
app.command("doctor")(doctor.doctor)
app.command("sync")(mlflow.sync)
app.command("ui")(mlflow.ui)
app.add_typer(shards.app, name="shards")
app.add_typer(import_checkpoint.app, name="import")
FREE_TEXT = ("prompt",)
"""Parameters that hold what a person says; a ~ in front of any other is the home folder."""


def home_expanded(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with ~ expanded in its paths and references: a shell leaves it in --output=~/x and in 'a=~/x'."""

    @functools.wraps(command)
    def with_homes(**given: Any) -> Any:
        return command(**{name: value if name in FREE_TEXT else _expanded(value) for name, value in given.items()})

    return with_homes


def _expanded(value: Any) -> Any:
    if isinstance(value, list):
        return [_expanded(item) for item in value]
    if isinstance(value, str | Path) and str(value).startswith("~"):
        return type(value)(os.path.expanduser(value))
    return value


def every_command(group: typer.Typer) -> Iterator[typer.models.CommandInfo]:
    """The commands of a group and of those inside it."""
    yield from group.registered_commands
    for inner in group.registered_groups:
        if inner.typer_instance is not None:
            yield from every_command(inner.typer_instance)


for _command in every_command(app):
    assert _command.callback is not None
    _command.callback = home_expanded(_command.callback)


def main() -> None:
    """Runs a command; a user's mistake is one sentence on standard error and exit code 2."""
    if not SUPPORTED:
        sys.stderr.write("error: fvl runs on Linux and macOS only; on Windows it runs in WSL, its Linux\n")
        sys.exit(EXIT_USAGE_ERROR)
    arguments = sys.argv[1:]
    code = 1  # of an error that nobody expects, which Python prints
    try:
        handle_for_command(arguments)
        code = run(arguments)
    except KeyboardInterrupt:  # before the command itself began, or after it had ended
        say(INTERRUPTED, stderr=True)
        code = EXIT_INTERRUPTED
    finally:
        begin_exit(code)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """The exit code of `fvl <arguments>`."""
    quiet_libraries()
    for_all = terminal(stderr=True, quiet=own_rank() > 0)  # what all ranks would say, the first one says
    try:
        result = app(with_own_plugins(arguments), standalone_mode=False, prog_name="fvl")
    except PeerFailedError:
        return EXIT_PEER_FAILED
    except LostRankError as error:
        if error.is_reporter:
            say_error(str(error))
        return EXIT_REQUEUE
    except UserError as error:
        who = f" (rank {own_rank()})" if own_rank() else ""
        say_error(str(error), who)
        return EXIT_USAGE_ERROR
    except TyperException as error:
        if error.format_message():  # without one, the help has been shown
            say_error(as_overrides(arguments, getattr(error, "option_name", None)) or error.format_message())
        return EXIT_USAGE_ERROR
    except Preempted:
        for_all.print(
            f"stopped by a signal; what was saved is kept, exit code {EXIT_REQUEUE} asks for the same command "
            "again (`--resume-or-start` for a training)",
            soft_wrap=True,
        )
        return EXIT_REQUEUE
    except Exception as error:
        cause = disk_error(error)
        if cause is None:
            raise
        what = "needs another open file" if is_lack_of_files(cause) else "cannot be used"
        say_error(f"{cause.filename or 'the command'} {what}: {os_error_in_words(cause)}")
        return EXIT_USAGE_ERROR
    if result == EXIT_INTERRUPTED:  # typer's answer to KeyboardInterrupt
        for_all.print(INTERRUPTED, soft_wrap=True)
    return result if isinstance(result, int) else 0
