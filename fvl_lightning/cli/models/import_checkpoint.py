"""`fvl import`: checkpoints of other code as model folders of this kit."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from fvl_lightning.core.terminal import say

app = typer.Typer(help="Turn a checkpoint of other code into a model folder.", no_args_is_help=True)


@app.command("florence-vl")
def florence_vl(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a checkpoint in the released layout.")],
    out: Annotated[Path, typer.Argument(help="Model folder to write.")],
    vision_tower: Annotated[
        Path | None, typer.Option(help="Folder of the tower's configuration, and of its weights if not in CHECKPOINT.")
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder of the tokenizer, if not CHECKPOINT.")] = None,
    pooled_token: Annotated[
        Literal["keep", "drop"],
        typer.Option(help="Keep the pooled token of each image (577 tokens), or drop it (576)."),
    ] = "keep",
    prompt_pads: Annotated[
        Literal["attend", "mask"], typer.Option(help="Attend to the padding of shorter prompts, or mask it.")
    ] = "attend",
    decoder: Annotated[
        Literal["drop", "keep"], typer.Option(help="Florence-2's decoder, which the features do not need.")
    ] = "drop",
) -> None:
    """Import a released Florence-VL checkpoint (llava_llama or llava_phi).

    Example: `fvl import florence-vl florence-vl-8b-sft models/florence-vl-8b --vision-tower florence-vision-tower`
    """
    from fvl_lightning.modeling.conversion.florence_vl import import_florence_vl
    from fvl_lightning.modeling.conversion.florence_vl_config import ImportOptions

    done = import_florence_vl(
        checkpoint, out, vision_tower, tokenizer, ImportOptions(pooled_token, prompt_pads, decoder)
    )
    sizes = f"{done.parameters:,} parameters, {done.tokens_per_image} tokens per image"
    line = f"{out}: {sizes}; {done.ignored} keys of the checkpoint have no use here"
    say(line)
