"""Pictures from wherever people have them -> the encoder's pixels, brought to its square as in training."""

import base64
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from datamodules.encoding.messages import Message, parts_of
from datamodules.images.decoding import MAX_BYTES
from datamodules.images.transforms import Fit, ImageReader
from fvl_lightning.core.errors import ConfigError, DataError, first_line
from fvl_lightning.core.types import ImageSpec
from fvl_lightning.modeling.configuration import FlorenceVLConfig

DOWNLOAD_SECONDS = 30
IMAGE_KEYS = ("image", "url", "path", "base64")
"""Where a message part of type image may have its picture, as transformers' chat templates have it."""

Picture = Image.Image | NDArray[np.uint8] | Tensor | Path | str | bytes
"""A Pillow image, a uint8 array or tensor of three channels, a file, an http(s) address, or encoded bytes."""


class FlorenceVLImageProcessor(BaseImageProcessor):
    """Pictures -> pixel_values [I, 3, P, P] float32, brought to the encoder's square as the training's were."""

    model_input_names = ["pixel_values"]  # noqa: RUF012 - transformers' own form

    def __init__(
        self,
        size: dict[str, int],
        image_mean: Sequence[float],
        image_std: Sequence[float],
        fit: Fit = "stretch",
        scaled_decode: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size, self.fit, self.scaled_decode = size, fit, scaled_decode
        self.image_mean, self.image_std = list(image_mean), list(image_std)

    def preprocess(
        self, images: Picture | Sequence[Any], return_tensors: str | None = "pt", **kwargs: Any
    ) -> BatchFeature:
        """One picture, a list, or a list per row of a batch -> pixel_values in that order.

        Raises:
            DataError: a picture that cannot be read, or is larger than what is read.
        """
        refuse_unused(kwargs)
        reader = self.reader
        values: Tensor = reader.pixels([load_picture(picture, reader) for picture in flat(images)])
        return BatchFeature({"pixel_values": values}, tensor_type=return_tensors)

    @property
    def reader(self) -> ImageReader:
        """How images become pixels; the decoder is Pillow, of which simplejpeg is at most 2 of 255 levels away."""
        mean, std = (tuple(map(float, values)) for values in (self.image_mean, self.image_std))
        assert len(mean) == 3 and len(std) == 3
        spec = ImageSpec(self.size["height"], mean, std, tokens_per_image=0)
        return ImageReader(spec, self.fit, scaled=self.scaled_decode)


def load_picture(picture: Picture, reader: ImageReader) -> NDArray[np.uint8]:
    """[height, width, 3] RGB, upright; DataError for what cannot be read, or is too large to be."""
    if isinstance(picture, Image.Image):
        return reader.take(picture)
    if isinstance(picture, np.ndarray | Tensor):
        return _checked_array(picture)
    if isinstance(picture, str) and picture.startswith(("http://", "https://")):
        return reader.decode(_downloaded(picture))
    if isinstance(picture, str) and picture.startswith("data:"):
        return reader.decode(_from_base64(picture))
    if isinstance(picture, str | Path):
        return reader.decode(Path(picture))
    if isinstance(picture, bytes):
        return reader.decode(picture)
    raise DataError(f"an image is a {type(picture).__name__}, expected a Pillow image, an array, a path or an address")


def pictures_of(messages: Sequence[Message]) -> list[Picture]:
    """The pictures of a conversation in their order; DataError for an image part that has none."""
    pictures: list[Picture] = []
    for part in (part for message in messages for part in parts_of(message) if part["type"] == "image"):
        key = next((key for key in IMAGE_KEYS if key in part), None)
        if key is None:
            raise DataError(f"an image part has no picture, expected it under one of {', '.join(IMAGE_KEYS)}")
        pictures.append(_from_base64(part[key]) if key == "base64" else part[key])
    return pictures


def flat(images: Any) -> list[Picture]:
    """One picture, several, or several per row, as one list."""
    if isinstance(images, list | tuple):
        return [picture for inner in images for picture in flat(inner)]
    return [images]


def refuse_unused(words: dict[str, Any]) -> None:
    """ConfigError for words of other processors that would have no effect here."""
    if unknown := sorted(name for name, value in words.items() if value is not None):
        raise ConfigError(f"the processor has no use for {', '.join(unknown)}")


def _checked_array(picture: NDArray[Any] | Tensor) -> NDArray[np.uint8]:
    """[height, width, 3] of an array or a tensor, whose channels may come first; DataError for anything else."""
    array = picture.detach().cpu().numpy() if isinstance(picture, Tensor) else picture
    if array.ndim == 3 and array.shape[2] != 3 and array.shape[0] == 3:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
        found = f"{picture.dtype} {list(picture.shape)}"
        raise DataError(f"an image is an array {found}, expected uint8 [height, width, 3] or [3, height, width]")
    return np.ascontiguousarray(array)


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except ValueError as error:
        raise DataError(f"an image is no base64: {first_line(error)}") from None


def _downloaded(address: str) -> bytes:
    try:
        with urllib.request.urlopen(address, timeout=DOWNLOAD_SECONDS) as answer:
            return answer.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{address} could not be read: {first_line(error)}") from None


AutoImageProcessor.register(FlorenceVLConfig, image_processor_classes={"pil": FlorenceVLImageProcessor})
