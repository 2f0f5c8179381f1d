"""Arguments and options that several commands of `fvl shards` have."""

from typing import Annotated

import typer

Paths = Annotated[
    list[str],
    typer.Argument(help="Folders, tars, globs, braces such as 'train-{000000..000009}.tar', or URLs."),
]
Processes = Annotated[int | None, typer.Option(min=1, help="Processes to work in; one per core if left out.")]
Tokenizer = Annotated[str | None, typer.Option(help="Folder or hub id of a tokenizer with a chat template.")]
