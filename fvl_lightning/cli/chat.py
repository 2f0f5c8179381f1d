"""`fvl chat`: a conversation about pictures in the terminal, or over a pipe."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from fvl_lightning.cli.options import Adapters, Model, Plugins
from fvl_lightning.core.errors import ConfigError, DataError, unknown_name
from fvl_lightning.core.terminal import plural, terminal, visible

if TYPE_CHECKING:
    from fvl_lightning.inference.conversation import Conversation

HELP = {
    "/image <path>": "show a picture with the next message",
    "/adapter <name>": "answer with this adapter, without a name with none",
    "/clear": "begin a new conversation",
    "/help": "this list",
    "/quit": "end, as Ctrl-D does; Ctrl-C stops an answer",
}


def chat(
    model: Model,
    image: Annotated[
        list[Path] | None, typer.Option(help="Picture of the first message; repeat it for several.")
    ] = None,
    adapter: Adapters = None,
    plugins: Plugins = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 decodes greedily; above 0, tokens are sampled.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens of this probability.")] = 1.0,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of sampling; by default a new one.")] = None,
) -> None:
    """Talk with a model about pictures; /help lists the commands.

    Example: `fvl chat runs/demo/concat/finetune --image picture.png`
    """
    if not 0 < top_p <= 1:
        raise ConfigError(f"--top-p: a probability above 0, at most 1, not {top_p:g}")
    from datamodules.images.decoding import refuse_many_pixels
    from fvl_lightning.inference.adapters import attach_adapters
    from fvl_lightning.inference.conversation import Conversation
    from fvl_lightning.inference.generation import Sampling
    from fvl_lightning.runs.plugins import import_plugins_for
    from fvl_lightning.runs.references import answering_model, start_drawing

    import_plugins_for(model, plugins)
    loaded = answering_model(model)
    refuse_many_pixels(image or [])
    pictures = [loaded.processor.image_processor.reader.read(path) for path in image or ()]
    adapters = attach_adapters(loaded, adapter)
    conversation = Conversation(loaded, Sampling(max_tokens, temperature, top_p), pictures=pictures)
    start_drawing(seed)
    console = terminal()
    if console.is_terminal:
        console.print("/help for help, Ctrl-D to quit", style="dim")
    for line in lines(console):
        if line == "/quit":
            break
        try:
            obey(line, conversation, console, adapters)
        except (ConfigError, DataError) as error:
            console.print(f"error: {error}", style="red", soft_wrap=True)


def lines(console: Console) -> Iterator[str]:
    """Yields the typed lines, without blank ones, up to the end of the input."""
    terminal = sys.stdin.isatty()
    while True:
        try:
            line = console.input(Text("> ", style="bold")) if terminal else input()
        except EOFError:
            return
        except KeyboardInterrupt:
            console.print("\nCtrl-D or /quit ends", style="dim")
            continue
        if line.strip():
            yield line.strip()


def obey(line: str, conversation: "Conversation", console: Console, adapters: Sequence[str] = ()) -> None:
    """Does what a line asks for: a command, or an answer."""
    word, _, rest = line.partition(" ")
    if word == "/image":
        if not rest.strip():
            raise ConfigError("/image needs the path of a picture")
        from datamodules.images.limits import refuse_many_images

        reader = conversation.loaded.processor.image_processor.reader
        refuse_many_images(len(conversation.pictures) + 1)
        conversation.pictures.append(reader.read(Path(rest.strip()).expanduser()))
        console.print(f"{plural(len(conversation.pictures), 'picture')} for the next message", style="dim")
    elif word == "/adapter":
        if rest and rest not in adapters:
            raise unknown_name("adapter", rest, adapters, "/adapter")
        from fvl_lightning.modeling.adapters.folders import use_adapter

        use_adapter(conversation.loaded.model, rest or None)
        console.print(f"answers with {rest or 'no adapter'}", style="dim", soft_wrap=True)
    elif line == "/clear":
        conversation.messages, conversation.pictures = [], []
        console.print("a new conversation", style="dim")
    elif line == "/help":
        for command, what in HELP.items():
            console.print(f"{command:17}{what}", soft_wrap=True)
    elif word.startswith("/") and word.isascii() and word[1:].isalpha():
        raise unknown_name("command", word, [command.partition(" ")[0] for command in HELP], "chat")
    else:
        _answer(line, conversation, console)


def _answer(line: str, conversation: "Conversation", console: Console) -> None:
    with closing(conversation.say(line)) as pieces:
        try:
            for piece in pieces:
                # Not print(): stopped in the middle of it, Rich would write the piece again with what comes next.
                console.file.write(visible(piece))
                console.file.flush()
        except KeyboardInterrupt:
            console.print(" (stopped)", style="dim", end="")
    console.print()
