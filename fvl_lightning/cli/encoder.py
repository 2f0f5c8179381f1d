"""`fvl encoder`: runs the encoder with its own decoder on an image."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fvl_lightning.cli.options import Plugins
from fvl_lightning.core.terminal import say, terminal


def encoder(
    model: Annotated[
        str, typer.Argument(help="Run of encoder_pretrain (folder or MLflow id), or a Florence-2 (folder or hub id).")
    ],
    image: Annotated[Path, typer.Option(help="Picture to look at (PNG, JPEG, WebP, GIF or BMP).")],
    task: Annotated[str, typer.Option(help="The prompt: caption, ocr, grounding, or the model's own.")] = "caption",
    output: Annotated[Path, typer.Option(help="PNG file for the picture with the boxes of the answer.")] = Path(
        "boxes.png"
    ),
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of the longest answer; by default 1024, or fewer for a smaller model."),
    ] = None,
    plugins: Plugins = None,
) -> None:
    """Ask the encoder itself: its own decoder writes a caption, the text or the boxes of a picture.

    Example: `fvl encoder runs/demo/encoder_pretrain --task grounding --image picture.png`
    """
    from datamodules.images.decoding import decode_image
    from fvl_lightning.inference.boxes import draw_boxes, save_png
    from fvl_lightning.inference.encoder import ask_encoder, open_encoder
    from fvl_lightning.runs.plugins import import_plugins_for

    picture = decode_image(image)
    import_plugins_for(model, plugins)
    opened = open_encoder(model)
    answer = ask_encoder(opened, picture, task, max_tokens, opened.reader.decode(image))
    console = terminal()
    if answer.boxes:
        table = Table("object", "left", "top", "right", "bottom", title=f"{image}, in pixels")
        for box in answer.boxes:
            table.add_row(box.label, *(f"{edge:.0f}" for edge in box.frame))
        save_png(draw_boxes(picture, answer.boxes), output)
        console.print(table)
        console.print(f"boxes: {output}", soft_wrap=True)
    else:
        console.print(answer.text, soft_wrap=True)
    if not answer.ended:
        say("the answer was cut where its tokens ended, see --max-tokens", stderr=True)
