"""Limits of images: those of each, and those of the images that are read together, as of a row or a question."""

from fvl_lightning.core.errors import DataError

MAX_PIXELS = 64 * 1024 * 1024
"""An image with more pixels than this, by its header, is refused before it is decoded."""

MAX_BYTES = 256 * 1024 * 1024
"""A longer encoded image is refused unread; MAX_PIXELS of four bytes each fit."""

MAX_IMAGES = 64
"""Largest number of images of one row, question or conversation."""

MAX_PIXELS_TOGETHER = 4 * MAX_PIXELS
"""Largest number of their pixels, by their headers."""


def refuse_length(length: int) -> None:
    """Raises DataError for an encoded image of more than MAX_BYTES."""
    if length > MAX_BYTES:
        raise DataError(f"image of {length} bytes, at most {MAX_BYTES} are read")


def refuse_size(size: tuple[int, int] | None) -> None:
    """Raises DataError for a width and height without pixels, or with more than MAX_PIXELS; None is not known yet."""
    if size is None:
        return
    width, height = size
    if width < 1 or height < 1:
        raise DataError(f"image of {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise DataError(f"image of {width} x {height} pixels, at most {MAX_PIXELS} are read")


def refuse_many_images(count: int) -> None:
    """Raises DataError for more than MAX_IMAGES images."""
    if count > MAX_IMAGES:
        raise DataError(f"{count} images, at most {MAX_IMAGES} are read together")
