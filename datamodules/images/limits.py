"""Limits of the images that are read together: those of a row of data, a question, or a conversation."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from datamodules.images.decoding import MAX_PIXELS, image_size
from fvl_lightning.core.errors import DataError

MAX_IMAGES = 64
"""Largest number of images of one row, question or conversation."""

MAX_PIXELS_TOGETHER = 4 * MAX_PIXELS
"""Largest number of their pixels, by their headers."""


def refuse_many_images(count: int) -> None:
    """Raises DataError for more than MAX_IMAGES images."""
    if count > MAX_IMAGES:
        raise DataError(f"{count} images, at most {MAX_IMAGES} are read together")


def refuse_many_pixels(images: Sequence[bytes | Path]) -> None:
    """Raises DataError for encoded images with more than MAX_PIXELS_TOGETHER pixels; none of them is decoded.

    An image whose header cannot be read does not count: decoding refuses it.
    """
    if len(images) * MAX_PIXELS <= MAX_PIXELS_TOGETHER:
        return
    pixels = 0
    for image in images:
        with suppress(DataError):
            width, height = image_size(image)
            pixels += width * height
    if pixels > MAX_PIXELS_TOGETHER:
        raise DataError(f"{len(images)} images of {pixels} pixels, at most {MAX_PIXELS_TOGETHER} are read together")
