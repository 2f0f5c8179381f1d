"""What the encoder writes about one picture under one of its prompts: the picture through its eyes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer

from datamodules.encoding.location_tokens import location_bins
from datamodules.images.transforms import Fit, ImageReader
from fvl_lightning.core.config.loading import check_config, choose
from fvl_lightning.core.errors import ConfigError, DataError, unknown_name
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.types import ImageSpec
from fvl_lightning.core.weight_files import read_json
from fvl_lightning.encoders.florence2_files import find_image_size
from fvl_lightning.inference.boxes import PixelBox, in_pixels, parse_boxes, written_text
from fvl_lightning.modeling.build import ENCODER_FILE, build_encoder, load_encoder, load_model
from fvl_lightning.modeling.configuration import FlorenceVLConfig
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.references import finished_run

MOST_TOKENS = 1024
"""Of an answer where nothing else is said; less where the decoder holds less."""


@dataclass(frozen=True)
class SeeingEncoder:
    """An encoder with its decoder, the tokenizer of what it writes, and how its images were made square."""

    encoder: Any
    tokenizer: Any
    fit: Fit = "stretch"
    scaled: bool = False
    """Whether large JPEGs were decoded at a fraction of their size."""

    @property
    def reader(self) -> ImageReader:
        """How images become what the encoder takes."""
        spec = ImageSpec(self.encoder.image_size, self.encoder.mean, self.encoder.std, 0)
        return ImageReader(spec, self.fit, scaled=self.scaled)


@dataclass(frozen=True)
class EncoderAnswer:
    """The text, its boxes in pixels of the picture, and whether it came to an end by itself."""

    text: str
    boxes: list[PixelBox]
    ended: bool


@torch.no_grad()
def ask_encoder(
    model: SeeingEncoder, picture: NDArray[np.uint8], task: str, max_tokens: int | None = None,
    seen: NDArray[np.uint8] | None = None,
) -> EncoderAnswer:
    """What the decoder writes greedily about a picture [height, width, 3] under the prompt `task`.

    Args:
        seen: the picture as `model.reader` decodes it, where that is another size; boxes are in pixels of `picture`.

    Raises:
        ConfigError: a prompt the encoder does not have, or more tokens than its decoder holds.
        DataError: boxes from a tokenizer without location tokens.
    """
    encoder, tokenizer = model.encoder.eval(), model.tokenizer
    if task not in encoder.tasks:
        raise unknown_name("prompt", task, encoder.tasks, "task")
    held = encoder.model_config.text_config.max_position_embeddings
    if max_tokens is not None and max_tokens > held:
        raise ConfigError(f"max_tokens: {max_tokens} are asked for, the encoder's decoder holds {held}")
    pixels = model.reader.pixels([picture if seen is None else seen])
    ids = encoder.write(pixels, max_tokens or min(MOST_TOKENS, held), [task])[0, 0]
    text = written_text(tokenizer, ids)
    located, (height, width) = parse_boxes(text), picture.shape[:2]
    bins = location_bins(tokenizer) if located else 0
    boxes = [in_pixels(box, bins, width, height) for box in located]
    return EncoderAnswer(text, boxes, bool((ids == encoder.end_id).any()))


REMEDY = "name an encoder_pretrain run, or a Florence-2 itself"


HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


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
    entry = {"name": "florence2", "pretrained": reference, "decoder": "keep", "image_size": find_image_size(reference)}
    found = build_encoder(ExperimentConfig(encoder=choose("encoder", entry))).encoder
    return SeeingEncoder(found, found.load_tokenizer(found.config))


def _may_be_hub_id(reference: str) -> bool:
    """Whether it is written like `owner/name`, with no folder here that it rather is a mistyped part of."""
    return HUB_ID.fullmatch(reference) is not None and not Path(reference).parent.is_dir()
