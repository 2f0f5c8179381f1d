"""`fvl shards preview`: samples as a person looks at them, and as a language model is taught them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from fvl_lightning.cli.shards.options import Paths, Tokenizer
from fvl_lightning.core.atomic import atomic_write
from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.core.terminal import terminal, visible

if TYPE_CHECKING:
    from datamodules.encoding.conversation import ConversationEncoder
    from datamodules.inspection.preview import Preview

OPENS, CLOSES = "⟦", "⟧"
"""Around what is supervised, so that it is seen without colours too."""


def preview(
    paths: Paths,
    number: Annotated[int, typer.Option(min=1, max=200, help="Samples, spread evenly over all of them.")] = 12,
    tokenizer: Tokenizer = None,
    output: Annotated[Path, typer.Option(help="Where the contact sheet goes, a PNG.")] = Path("preview.png"),
) -> None:
    """Draw a contact sheet of some samples, and print their conversations with what of them is supervised.

    Example: `fvl shards preview shards/mine --number 12 --tokenizer data/demo/tokenizer --output preview.png`
    """
    if output.suffix.lower() != ".png" or not output.parent.is_dir():
        raise ConfigError(f"--output: {output} must be a .png file in a folder that exists")
    from datamodules.inspection.preview import contact_sheet, preview_sample
    from datamodules.storage.sample import spread
    from datamodules.storage.sample_store import SampleStore
    from datamodules.storage.shard_cache import shard_cache
    from datamodules.storage.shard_paths import expand_shards
    from fvl_lightning.modeling.processing.conversation_encoder import open_conversation_encoder

    store = SampleStore(expand_shards(paths), "all", shard_cache())
    encoder = None if tokenizer is None else open_conversation_encoder(tokenizer, tokens_per_image=1)
    previews = [preview_sample(store, i) for i in spread(len(store), number)]
    with atomic_write(output) as tmp_path:
        contact_sheet(previews).save(tmp_path, format="PNG")
    console = terminal()
    for sample in previews:
        _print(sample, encoder, console)
    console.print(f"{len(previews)} of {len(store):,} samples: {output}", soft_wrap=True)


def _print(sample: "Preview", encoder: "ConversationEncoder | None", console: Console) -> None:
    console.rule(Text(visible(f"{sample.key}   {sample.pixels}"), style="bold"), align="left")
    console.print(_problem(sample.problem) if sample.problem else _conversation(sample, encoder), soft_wrap=True)


def _conversation(sample: "Preview", encoder: "ConversationEncoder | None") -> Text:
    if encoder is None:
        lines = [Text.assemble((f"{role}: ", "bold"), visible(text)) for role, text in sample.texts]
        return Text("\n").join(lines)
    from datamodules.inspection.preview import supervised_runs

    try:
        runs = supervised_runs(sample, encoder)
    except DataError as error:
        return _problem(f"not encodable: {error}")
    text = Text()
    for words, _, supervised in runs:
        text.append(f"{OPENS}{visible(words)}{CLOSES}" if supervised else visible(words), "green" if supervised else "")
    taught = sum(tokens for _, tokens, supervised in runs if supervised)
    total = sum(tokens for _, tokens, _ in runs)
    text.append(f"\n{taught} of {total} tokens supervised, an image counted as one", "dim")
    return text


def _problem(words: str) -> Text:
    return Text(visible(f"cannot be used: {words}"), style="red")
