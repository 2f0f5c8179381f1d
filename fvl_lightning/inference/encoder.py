"""Runs an encoder with its own decoder on an image: caption, OCR or grounding."""

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
from fvl_lightning.core.config.loading import choose
from fvl_lightning.core.device import compute_device
from fvl_lightning.core.errors import ConfigError, DataError, unknown_name
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.pretrained import open_saved
from fvl_lightning.core.types import ImageSpec
from fvl_lightning.core.weight_files import read_json
from fvl_lightning.encoders.florence2_files import find_image_size
from fvl_lightning.inference.boxes import PixelBox, in_pixels, parse_boxes, written_text
from fvl_lightning.modeling.build import ENCODER_FILE, build_encoder, load_encoder, load_model
from fvl_lightning.modeling.configuration import FlorenceVLConfig
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.references import check_model, finished_run

DEFAULT_MAX_TOKENS = 1024
"""Default length limit of an answer; a decoder with fewer positions lowers it."""


@dataclass(frozen=True)
class EncoderWithDecoder:
    """An encoder with its decoder, its tokenizer, and the image settings of its training."""

    encoder: Any
    tokenizer: Any
    fit: Fit = "stretch"
    scaled: bool = False
    """Whether large JPEGs were decoded at a fraction of their size."""

    @property
    def reader(self) -> ImageReader:
        """The reader that turns images into the encoder's input."""
        spec = ImageSpec(self.encoder.image_size, self.encoder.mean, self.encoder.std, 0)
        return ImageReader(spec, self.fit, scaled=self.scaled)


@dataclass(frozen=True)
class EncoderAnswer:
    """The generated text, its boxes in pixels of the image, and whether it ended with the end token."""

    text: str
    boxes: list[PixelBox]
    ended: bool


@torch.no_grad()
def ask_encoder(
    model: EncoderWithDecoder, picture: NDArray[np.uint8], task: str, max_tokens: int | None = None,
    seen: NDArray[np.uint8] | None = None,
) -> EncoderAnswer:
    """Decodes greedily under the prompt `task` for an image [height, width, 3].

    Args:
        seen: the image as `model.reader` decodes it, if its size differs; boxes are in pixels of `picture`.

    Raises:
        ConfigError: the encoder has no such prompt, or its decoder has fewer than `max_tokens` positions.
        DataError: boxes from a tokenizer without location tokens.
    """
    encoder, tokenizer = model.encoder.eval(), model.tokenizer
    if task not in encoder.tasks:
        raise unknown_name("prompt", task, encoder.tasks, "task")
    limit = encoder.model_config.text_config.max_position_embeddings
    if max_tokens is not None and max_tokens > limit:
        raise ConfigError(f"max_tokens: {max_tokens} are too many, the encoder's decoder has {limit} positions")
    like = next(encoder.parameters())
    pixels = model.reader.pixels([picture if seen is None else seen]).to(like.device, like.dtype)
    ids = encoder.write(pixels, max_tokens or min(DEFAULT_MAX_TOKENS, limit), [task])[0, 0]
    text = written_text(tokenizer, ids)
    boxes, (height, width) = parse_boxes(text), picture.shape[:2]
    bins = location_bins(tokenizer) if boxes else 0
    pixel_boxes = [in_pixels(box, bins, width, height) for box in boxes]
    return EncoderAnswer(text, pixel_boxes, bool((ids == encoder.end_id).any()))


REMEDY = "name an encoder_pretrain run, or a Florence-2 itself"


HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def open_encoder(reference: str) -> EncoderWithDecoder:
    """Opens the encoder of a run, a saved folder or a hub id, on the GPU if there is one.

    Raises:
        ConfigError: an unfinished run, an encoder without a decoder, or a model of another kind.
        DataError: no such model, or broken files.
    """
    opened = _open(reference)
    opened.encoder.to(compute_device())
    return opened


def _open(reference: str) -> EncoderWithDecoder:
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
            f"{path} holds no encoder, expected a run (run.json), a saved encoder ({ENCODER_FILE}) or a "
            "Florence-2 (config.json)"
        )
    if read_json(path / "config.json").get("model_type") == FlorenceVLConfig.model_type:
        return _of_whole_model(path, REMEDY)
    return _pretrained(reference)


def _of_run(run: RunFolder) -> EncoderWithDecoder:
    experiment = run.experiment()
    check_model(run)
    if (run.model / ENCODER_FILE).is_file():
        data = experiment.data.config
        return _saved(run.model, experiment.encoder.name, data.image_fit, data.scaled_decode)
    origin = _encoder_run(run)
    return _of_whole_model(run.model, REMEDY if origin is None else f"name {origin}")


def _encoder_run(run: RunFolder) -> Path | None:
    """Returns the encoder_pretrain run that a run's encoder comes from."""
    for parent in run.info.get("init_from", []):
        earlier = RunFolder(Path(parent["run"]))
        origin = earlier.path if earlier.info.get("stage") == "encoder_pretrain" else _encoder_run(earlier)
        if origin is not None:
            return origin
    return None


def _saved(folder: Path, name: str = "florence2", fit: Fit = "stretch", scaled: bool = False) -> EncoderWithDecoder:
    _refuse_without_decoder(read_json(folder / ENCODER_FILE), folder, REMEDY)
    encoder = load_encoder(folder, name).encoder
    try:
        own = (folder / "tokenizer_config.json").is_file()
        saved = open_saved(AutoTokenizer, folder, "the tokenizer", DataError) if own else None
        tokenizer = saved or encoder.load_tokenizer(encoder.config)
    except ConfigError as error:
        raise ConfigError(
            f"{folder} was saved without its tokenizer, run this where it was trained: {error}"
        ) from None
    return EncoderWithDecoder(encoder, tokenizer, fit, scaled)


def _of_whole_model(folder: Path, remedy: str) -> EncoderWithDecoder:
    """Returns the encoder of a whole model, if its decoder was kept."""
    _refuse_without_decoder(read_json(folder / "config.json").get("encoder") or {}, folder, remedy)
    loaded = load_model(folder)
    encoder = loaded.model.encoder
    images = loaded.processor.image_processor
    return EncoderWithDecoder(encoder, encoder.load_tokenizer(encoder.config), images.fit, images.scaled_decode)


def _refuse_without_decoder(config: Mapping[str, Any], folder: Path, remedy: str) -> None:
    if config.get("decoder") != "keep":  # checked before gigabytes are read
        raise ConfigError(f"{folder} has an encoder without its decoder, which cannot write text; {remedy}")


def _pretrained(reference: str) -> EncoderWithDecoder:
    """Loads a Florence-2 from a folder or the hub, in either layout, with the released prompts."""
    entry = {"name": "florence2", "pretrained": reference, "decoder": "keep", "image_size": find_image_size(reference)}
    encoder = build_encoder(ExperimentConfig(encoder=choose("encoder", entry))).encoder
    return EncoderWithDecoder(encoder, encoder.load_tokenizer(encoder.config))


def _may_be_hub_id(reference: str) -> bool:
    """Returns whether it looks like `owner/name` and `owner` is no local folder, so that it is not a mistyped path."""
    return HUB_ID.fullmatch(reference) is not None and not Path(reference).parent.is_dir()
