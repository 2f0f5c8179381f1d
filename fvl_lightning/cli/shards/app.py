"""`fvl shards`: what makes, checks and shows training data."""

import typer

from fvl_lightning.cli.shards import (
    build as shards_build,
)
from fvl_lightning.cli.shards import (
    check as shards_check,
)
from fvl_lightning.cli.shards import (
    info as shards_info,
)
from fvl_lightning.cli.shards import (
    order as shards_order,
)
from fvl_lightning.cli.shards import (
    preview as shards_preview,
)

app = typer.Typer(
    help="Build, index, check and look at the shards that training reads.\n\n"
    "Example: `fvl shards build llava_json source.file=a.json source.images=photos output=shards/mine`",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.command("build")(shards_build.build)
app.command("index")(shards_check.index)
app.command("check")(shards_check.check)
app.command("info")(shards_info.info)
app.command("preview")(shards_preview.preview)
app.command("order")(shards_order.order)
