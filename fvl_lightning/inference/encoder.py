"""What the encoder writes about one picture under one of its prompts: the picture through its eyes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.encoding.views import location_bins
from datamodules.images.transforms import Fit, ImageReader
from fvl_lightning.core.errors import ConfigError, unknown_name
from fvl_lightning.core.types import ImageSpec
from fvl_lightning.evaluation.encoder_scores import parse_boxes, written_text
from fvl_lightning.inference.boxes import PixelBox, in_pixels

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
