"""`fvl shards`: what makes, checks and shows training data."""

import typer

from fvl_lightning.cli.shards import build, check, info, order, preview

app = typer.Typer(
    help="Build, index, check and look at the shards that training reads.\n\n"
    "Example: `fvl shards build llava_json source.file=a.json source.images=photos output=shards/mine`",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.command("build")(build.build)
app.command("index")(check.index)
app.command("check")(check.check)
app.command("info")(info.info)
app.command("preview")(preview.preview)
app.command("order")(order.order)
