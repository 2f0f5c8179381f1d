"""`fvl generate`: a model answers one question about pictures, or as many as a folder or a file asks."""

from pathlib import Path
from typing import Annotated

import typer

from fvl_lightning.cli.options import Adapter, Model, Plugins
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.terminal import plural, say


def generate(
    model: Model,
    image: Annotated[list[Path] | None, typer.Option(help="Picture of the question; repeat it for several.")] = None,
    prompt: Annotated[str | None, typer.Option(help="The question.")] = None,
    adapter: Adapter = None,
    plugins: Plugins = None,
    images: Annotated[Path | None, typer.Option(help="Folder of pictures; each is asked about.")] = None,
    input: Annotated[
        Path | None, typer.Option(help="JSON Lines: image or images, and prompt or messages, in each row.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="JSON Lines file for the answers to a folder or a file.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows answered in one batch.")] = 16,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the longest answer.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 decodes greedily; above 0, tokens are sampled.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens of this probability.")] = 1.0,
    beams: Annotated[int, typer.Option(min=1, help="Beams of a beam search.")] = 1,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of sampling; by default a new one, for rows 0.")] = None,
) -> None:
    """Answer one question about pictures, or every row of a file; started again, it continues a file.

    Example: `fvl generate runs/demo/concat/finetune --image picture.png --prompt "how many shapes are there?"`
    """
    _check_inputs(image, images, input, prompt, output)
    if not 0 < top_p <= 1:
        raise ConfigError(f"--top-p: a probability above 0, at most 1, not {top_p:g}")
    from fvl_lightning.inference.adapters import attach_adapters
    from fvl_lightning.inference.answers_file import AnswersFile
    from fvl_lightning.inference.batch import answer_all
    from fvl_lightning.inference.generation import Sampling, answer, encode, user_message
    from fvl_lightning.inference.requests import file_requests, folder_requests
    from fvl_lightning.runs.plugins import import_plugins_for
    from fvl_lightning.runs.references import answering_model, model_hash, start_drawing

    import_plugins_for(model, plugins)
    sampling = Sampling(max_tokens, temperature, top_p, beams)
    if image:
        loaded = answering_model(model)
        attach_adapters(loaded, adapter and [adapter])
        asked = encode(loaded, [user_message(list(image), prompt or "")])
        start_drawing(seed)
        (text,) = answer(loaded, [asked], sampling)
        say(text)
        return
    assert output is not None
    requests = file_requests(input) if input else folder_requests(images or Path(), prompt or "")
    loaded = answering_model(model)
    attach_adapters(loaded, adapter and [adapter])
    seed = seed or 0
    settings = vars(sampling) | ({"seed": seed, "batch_size": batch_size} if temperature else {})
    answers = AnswersFile(output, {"model": model_hash(loaded), "input": requests.digest, **settings})
    failed = answers.failed + answer_all(loaded, requests, answers, sampling, batch_size, seed)
    there = f", {answers.done:,} of them before" if answers.done else ""
    line = f"{plural(requests.count, 'row')}{there}, {failed:,} without an answer: {output}"
    say(line)


def _check_inputs(
    image: list[Path] | None, images: Path | None, input: Path | None, prompt: str | None, output: Path | None
) -> None:
    """ConfigError unless there is one kind of question, with what it needs and no more."""
    kinds = [name for name, given in (("--image", image), ("--images", images), ("--input", input)) if given]
    if len(kinds) != 1:
        found = " and ".join(kinds) or "none of them"
        raise ConfigError(f"name one of --image (a picture), --images (a folder), --input (JSON Lines), found {found}")
    for name, given, wanted in (
        ("--prompt", prompt is not None, kinds[0] != "--input"),
        ("--output", output is not None, kinds[0] != "--image"),
    ):
        if given != wanted:
            raise ConfigError(f"{kinds[0]} {'needs' if wanted else 'goes without'} {name}")
