"""The image processor: images in many forms become the encoder's pixels, as in training."""

import base64
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from datamodules.encoding.messages import Message, parts_of
from datamodules.images.limits import MAX_BYTES
from datamodules.images.tile_reader import TileReader
from datamodules.images.tiling import MAX_TILES, Marks, Size, TiledImage, Tiles, Tiling
from datamodules.images.transforms import Fit, ImageReader
from fvl_lightning.core.errors import ConfigError, DataError, first_line
from fvl_lightning.core.types import ImageSpec
from fvl_lightning.modeling.configuration import FlorenceVLConfig

DOWNLOAD_SECONDS = 30
MAX_SIDE = 16_384
"""A limit to the pixels per side that no encoder reaches."""
IMAGE_KEYS = ("image", "url", "path", "base64")
"""The keys for the image of a message part, as in transformers' chat templates."""

Picture = Image.Image | NDArray[np.uint8] | Tensor | Path | str | bytes | TiledImage
"""A Pillow image, a uint8 array or tensor with three channels, a file, an http(s) URL, encoded bytes, or an image that
the processor's reader has cut."""


class FlorenceVLImageProcessor(BaseImageProcessor):
    """Turns images into pixel_values [I, 3, P, P] float32, fitted to the encoder's square as in training.

    With `tiles`, I counts the tiles of all images.

    Args:
        size: {"height": P, "width": P}.
        image_mean: the mean per channel, for values in [0, 1].
        image_std: the standard deviation per channel.
        fit: how an image that is not square is fitted to the square.
        scaled_decode: whether large JPEG files are decoded at a reduced size.
        tiles: the fields of `data.tiles`, by which images become tiles; None for one square each.
        kwargs: fields of transformers' base class.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 - transformers' own form

    def __init__(
        self,
        size: dict[str, int],
        image_mean: Sequence[float],
        image_std: Sequence[float],
        fit: Fit = "stretch",
        scaled_decode: bool = False,
        tiles: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        side = size.get("height") if isinstance(size, Mapping) else None
        if not isinstance(side, int) or not 0 < side <= MAX_SIDE or size.get("width") != side:
            raise DataError(f"size is {size!r}, expected an equal height and width of 1 to {MAX_SIDE:,}")
        if fit not in get_args(Fit):
            raise DataError(f"fit is {fit!r}, expected {' or '.join(get_args(Fit))}")
        for name, values in {"image_mean": image_mean, "image_std": image_std}.items():
            if not isinstance(values, Sequence) or not all(isinstance(value, int | float) for value in values):
                raise DataError(f"{name} is {values!r}, expected 3 numbers")
        self.size, self.fit, self.scaled_decode = size, fit, bool(scaled_decode)
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        self.tiles = None if tiles is None else vars(_read_tiles(tiles))
        if self.tiles and self.scaled_decode:
            raise DataError("tiles and scaled_decode are both set, which cannot be combined")

    def preprocess(
        self, images: Picture | Sequence[Any], return_tensors: str | None = "pt", **kwargs: Any
    ) -> BatchFeature:
        """Returns the pixel_values of one image, a list of images, or a list per row of a batch, in their order.

        Raises:
            ConfigError: an unknown option.
            DataError: an image cannot be read, or is too large.
        """
        refuse_unknown_options(kwargs)
        reader = self.reader
        # Squared one after the other, so that no more than one large image is held.
        values: Tensor = reader.pixels([cut_picture(picture, reader) for picture in flatten(images)])
        return BatchFeature({"pixel_values": values}, tensor_type=return_tensors)

    def cut(self, pictures: Sequence[Picture]) -> tuple[Sequence[Picture], list[Size]]:
        """Returns images cut into tiles, one read after the other, and their sizes; without tiles they stay unread."""
        reader = self.reader
        if reader.tiling is None:
            return pictures, []
        cut = [cut_picture(picture, reader) for picture in pictures]
        return cut, [picture.size for picture in cut]

    @property
    def tiling(self) -> Tiling | None:
        """The rule by which images become tiles; None for one square each."""
        return Tiling.of(None if self.tiles is None else _read_tiles(self.tiles), self.size["height"])

    @property
    def reader(self) -> TileReader:
        """The reader that turns images into pixels with Pillow; simplejpeg differs by at most 2 of 255 levels."""
        mean, std = (tuple(map(float, values)) for values in (self.image_mean, self.image_std))
        if len(mean) != 3 or len(std) != 3:
            raise ConfigError(f"image_mean and image_std: expected 3 numbers each, found {len(mean)} and {len(std)}")
        spec = ImageSpec(self.size["height"], mean, std, tokens_per_image=0)
        return TileReader(ImageReader(spec, self.fit, scaled=self.scaled_decode), self.tiling)


def cut_picture(picture: Picture, reader: TileReader) -> TiledImage:
    """Returns the tiles of an image; raises DataError if it cannot be read or is too large."""
    return picture if isinstance(picture, TiledImage) else reader.cut(load_picture(picture, reader.images))


def load_picture(picture: Picture, reader: ImageReader) -> NDArray[np.uint8]:
    """Returns an upright RGB image [height, width, 3]; raises DataError if it cannot be read or is too large."""
    if isinstance(picture, Image.Image):
        return reader.take(picture)
    if isinstance(picture, np.ndarray | Tensor):
        return _checked_array(picture)
    if isinstance(picture, str) and picture.startswith(("http://", "https://")):
        return reader.decode(_download(picture))
    if isinstance(picture, str) and picture.startswith("data:"):
        return reader.decode(_decode_base64(picture))
    if isinstance(picture, str | Path):
        return reader.decode(Path(picture))
    if isinstance(picture, bytes):
        return reader.decode(picture)
    expected = "a Pillow image, array, tensor, bytes, path or URL"
    raise DataError(f"an image is a {type(picture).__name__}, expected {expected}")


def pictures_of(messages: Sequence[Message]) -> list[Picture]:
    """Returns the images of a conversation in their order; raises DataError for an image part without one."""
    pictures: list[Picture] = []
    for part in (part for message in messages for part in parts_of(message) if part["type"] == "image"):
        key = next((key for key in IMAGE_KEYS if key in part), None)
        if key is None:
            raise DataError(f"an image part has no picture, expected it under one of {', '.join(IMAGE_KEYS)}")
        pictures.append(_decode_base64(part[key]) if key == "base64" else part[key])
    return pictures


def flatten(images: Any) -> list[Picture]:
    """Returns one image, several, or several per row as one list."""
    if isinstance(images, list | tuple):
        return [picture for inner in images for picture in flatten(inner)]
    return [images]


def refuse_unknown_options(options: dict[str, Any]) -> None:
    """Raises ConfigError for options of other processors, which would have no effect here."""
    if unknown := sorted(name for name, value in options.items() if value is not None):
        raise ConfigError(f"the processor has no use for {', '.join(unknown)}")


def _read_tiles(fields: Any) -> Tiles:
    """Returns `data.tiles` from a saved mapping of its fields; raises DataError for anything else."""
    try:
        tiles = Tiles(**fields)
    except TypeError:
        raise DataError(f"tiles is {fields!r}, expected the fields of data.tiles") from None
    whole = isinstance(tiles.max, int) and 1 <= tiles.max <= MAX_TILES
    if not whole or not isinstance(tiles.thumbnail, bool) or tiles.marks not in get_args(Marks):
        raise DataError(
            f"tiles is {fields!r}, expected max of 1 to {MAX_TILES}, thumbnail true or false, and marks of "
            f"{' or '.join(get_args(Marks))}"
        )
    return tiles


def _checked_array(picture: NDArray[Any] | Tensor) -> NDArray[np.uint8]:
    """Returns [height, width, 3] of an array or a tensor, whose channels may come first; otherwise raises DataError."""
    array = picture.detach().cpu().numpy() if isinstance(picture, Tensor) else picture
    if array.ndim == 3 and array.shape[2] != 3 and array.shape[0] == 3:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
        found = f"{picture.dtype} {list(picture.shape)}"
        raise DataError(f"an image is an array {found}, expected uint8 [height, width, 3] or [3, height, width]")
    return np.ascontiguousarray(array)


def _decode_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except ValueError as error:
        raise DataError(f"an image is no base64: {first_line(error)}") from None


def _download(address: str) -> bytes:
    try:
        with urllib.request.urlopen(address, timeout=DOWNLOAD_SECONDS) as answer:
            return answer.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{address} could not be read: {first_line(error)}") from None


AutoImageProcessor.register(FlorenceVLConfig, image_processor_classes={"pil": FlorenceVLImageProcessor})
