"""`fvl generate`: a finished run answers one question about one picture."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fvl_lightning.commands.evaluate import finished_run, open_model
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.evaluation.answers import generate_texts


def generate(
    run: Annotated[str, typer.Argument(help="Run folder or MLflow run id.")],
    image: Annotated[Path, typer.Option(help="Picture to look at (PNG, JPEG or WebP).")],
    prompt: Annotated[str, typer.Option(help="The question.")],
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to write.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy; above, words are sampled.")] = 0.0,
) -> None:
    """Answer a question about a picture.

    Example: `fvl generate runs/demo/concat/finetune --image picture.png --prompt "how many shapes are there?"`
    """
    folder = finished_run(run)
    if folder.info["stage"] == "encoder_pretrain":
        raise ConfigError(f"{folder.path} is an encoder without a language model; name a run of a later stage")
    built, data = open_model(folder)
    pixels = data.read_image(image).unsqueeze(0).to(built.model.device)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {}
    texts = generate_texts(built, [data.encoder.prompt(messages)], max_tokens, pixel_values=pixels, **sampling)
    Console().print(texts[0], highlight=False, markup=False, soft_wrap=True)
