"""`fvl encoder`: a picture through the encoder's own eyes, told by its own decoder."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from rich.table import Table
from transformers import AutoTokenizer

from datamodules.images.decoding import decode_image
from datamodules.images.transforms import Fit
from datamodules.inspection.preview import visible
from datamodules.storage.index import replacing
from fvl_lightning.core.config.loading import check_config, choose
from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.terminal import say, terminal
from fvl_lightning.core.weight_files import read_json
from fvl_lightning.encoders.florence2_files import image_size_of
from fvl_lightning.inference.boxes import draw_boxes
from fvl_lightning.inference.encoder import SeeingEncoder, ask_encoder
from fvl_lightning.modeling.build import ENCODER_FILE, build_encoder, load_encoder, load_model
from fvl_lightning.modeling.configuration import FlorenceVLConfig
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.references import finished_run

REMEDY = "name an encoder_pretrain run, or a Florence-2 itself"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def encoder(
    model: Annotated[
        str, typer.Argument(help="Run of encoder_pretrain (folder or MLflow id), or a Florence-2 (folder or hub id).")
    ],
    image: Annotated[Path, typer.Option(help="Picture to look at (PNG, JPEG, WebP, GIF or BMP).")],
    task: Annotated[str, typer.Option(help="The prompt: caption, ocr, grounding, or the model's own.")] = "caption",
    output: Annotated[Path, typer.Option(help="PNG of the picture with the boxes, where the answer has some.")] = Path(
        "boxes.png"
    ),
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens to write; 1024 or what it holds.")] = None,
) -> None:
    """Does the encoder see it? Its own decoder writes a caption, the words or the boxes of a picture.

    Example: `fvl encoder runs/demo/encoder_pretrain --task grounding --image picture.png`
    """
    picture = decode_image(image)
    opened = open_encoder(model)
    answer = ask_encoder(opened, picture, task, max_tokens, opened.reader.decode(image))
    console = terminal()
    if answer.boxes:
        table = Table("object", "left", "top", "right", "bottom", title=f"{image}, in pixels")
        for box in answer.boxes:
            table.add_row(visible(box.label), *(f"{edge:.0f}" for edge in box.frame))
        save_png(draw_boxes(picture, answer.boxes), output)
        console.print(table)
        console.print(f"boxes: {output}", soft_wrap=True)
    else:
        console.print(visible(answer.text), soft_wrap=True)
    if not answer.ended:
        say("the answer was cut where its tokens ended, see --max-tokens", stderr=True)


def open_encoder(reference: str) -> SeeingEncoder:
    """The encoder behind a run, a saved folder or a hub id.

    Raises:
        ConfigError: an unfinished run, an encoder without a decoder, a model of another kind.
        DataError: no such model, or files that are broken.
    """
    path = Path(reference)
    if (path / "run.json").is_file() or not (path.exists() or _may_be_hub_id(reference)):
        return _of_run(finished_run(reference))
    if not path.exists():
        return _pretrained(reference)
    if (path / ENCODER_FILE).is_file():
        run = path.absolute().parent
        return _of_run(finished_run(str(run))) if (run / "run.json").is_file() else _saved(path)
    if not (path / "config.json").is_file():
        raise DataError(
            f"{path} is no model to look through, expected a run (run.json), a saved encoder ({ENCODER_FILE}) or a "
            "Florence-2 (config.json)"
        )
    if read_json(path / "config.json").get("model_type") == FlorenceVLConfig.model_type:
        return _of_whole_model(path, REMEDY)
    return _pretrained(reference)


def save_png(picture: Image.Image, path: Path) -> None:
    """Writes a PNG, whole or not at all; DataError where it can't be written."""
    try:
        with replacing(path) as beside:
            picture.save(beside, "PNG", optimize=True)
    except OSError as error:
        raise DataError(f"--output: {path} can't be written ({error.strerror})") from None


def _of_run(run: RunFolder) -> SeeingEncoder:
    experiment = check_config(ExperimentConfig, run.config)
    if (run.model / ENCODER_FILE).is_file():
        data = experiment.data.config
        return _saved(run.model, experiment.encoder.name, data.image_fit, data.scaled_decode)
    origin = _encoder_run(run)
    return _of_whole_model(run.model, REMEDY if origin is None else f"name {origin}")


def _encoder_run(run: RunFolder) -> Path | None:
    """The encoder_pretrain run that a run's encoder comes from."""
    for parent in run.info.get("init_from", []):
        before = RunFolder(Path(parent["run"]))
        found = before.path if before.info.get("stage") == "encoder_pretrain" else _encoder_run(before)
        if found is not None:
            return found
    return None


def _saved(folder: Path, name: str = "florence2", fit: Fit = "stretch", scaled: bool = False) -> SeeingEncoder:
    _refuse_without_decoder(read_json(folder / ENCODER_FILE), folder, REMEDY)
    found = load_encoder(folder, name).encoder
    try:
        own = (folder / "tokenizer_config.json").is_file()
        tokenizer = AutoTokenizer.from_pretrained(folder) if own else found.load_tokenizer(found.config)
    except ConfigError as error:
        raise ConfigError(f"{folder} needs the tokenizer of where it was trained, run this there: {error}") from None
    return SeeingEncoder(found, tokenizer, fit, scaled)


def _of_whole_model(folder: Path, remedy: str) -> SeeingEncoder:
    """A language model's encoder, where its decoder was kept."""
    _refuse_without_decoder(read_json(folder / "config.json").get("encoder") or {}, folder, remedy)
    loaded = load_model(folder)
    found = loaded.model.encoder
    images = loaded.processor.image_processor
    return SeeingEncoder(found, found.load_tokenizer(found.config), images.fit, images.scaled_decode)


def _refuse_without_decoder(config: Mapping[str, Any], folder: Path, remedy: str) -> None:
    if config.get("decoder") != "keep":  # seen before gigabytes are read
        raise ConfigError(f"{folder} has an encoder without its decoder, which can't tell what it sees; {remedy}")


def _pretrained(reference: str) -> SeeingEncoder:
    """A Florence-2 of a folder or the hub, in either layout, with the released prompts."""
    entry = {"name": "florence2", "pretrained": reference, "decoder": "keep", "image_size": image_size_of(reference)}
    found = build_encoder(ExperimentConfig(encoder=choose("encoder", entry))).encoder
    return SeeingEncoder(found, found.load_tokenizer(found.config))


def _may_be_hub_id(reference: str) -> bool:
    """Whether it is written like `owner/name`, with no folder here that it rather is a mistyped part of."""
    return HUB_ID.fullmatch(reference) is not None and not Path(reference).parent.is_dir()
