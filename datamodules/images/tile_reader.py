"""Reads images as tiles: an image is resized to the pixels of its grid and cut, row by row; a thumbnail follows."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datamodules.images.tiling import Size, TiledImage, TileGrid, Tiling
from datamodules.images.transforms import Fit, ImageReader
from fvl_lightning.core.types import ImageSpec


@dataclass(frozen=True)
class TileReader:
    """Reads images and cuts them into tiles, for training, caching, scoring and inference.

    Attributes:
        images: reads whole images, and has the settings of their pixels.
        tiling: the rule by which they become tiles; None for one tile each, which is the image made square.
    """

    images: ImageReader
    tiling: Tiling | None = None

    def decode(self, source: bytes | Path) -> NDArray[np.uint8]:
        """As of ImageReader."""
        return self.images.decode(source)

    def read(self, source: bytes | Path) -> TiledImage:
        """Decodes an encoded image or a file and cuts it, so that no large image is kept; errors as of `decode`."""
        return self.cut(self.decode(source))

    def cut(self, image: NDArray[np.uint8]) -> TiledImage:
        """Cuts a decoded image [height, width, 3]."""
        height, width = image.shape[:2]
        whole = self.images.square(image)[None]
        if self.tiling is None:
            return TiledImage(whole, (width, height))
        grid = self.tiling.grid((width, height))
        if grid.tiles == 1:
            return TiledImage(whole, (width, height))
        side = self.tiling.side
        resized = _fit_to_grid(image, grid, self.images.spec, self.images.fit)
        cut = resized.reshape(grid.rows, side, grid.columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
        return TiledImage(np.concatenate([cut, whole]) if grid.thumbnail else cut, (width, height))

    def pixels(self, images: Sequence[TiledImage]) -> Tensor:
        """Converts images to [T, 3, P, P], where T counts the tiles of all of them, image after image."""
        return self.images.pixels([tile for image in images for tile in image.tiles])

    def identity(self) -> dict[str, Any]:
        """Returns all that the pixels depend on; without tiles it is the identity of `images`."""
        tiles = {} if self.tiling is None else {"tiles": {**dataclasses.asdict(self.tiling), "marks": None}}
        return self.images.identity() | tiles


def _fit_to_grid(image: NDArray[np.uint8], grid: TileGrid, spec: ImageSpec, fit: Fit) -> NDArray[np.uint8]:
    """Resizes [height, width, 3] to the pixels of a grid, as `fit` says for a square."""
    (height, width), across, down = image.shape[:2], grid.columns * spec.size, grid.rows * spec.size
    picture, box = Image.fromarray(image), None
    if (width, height) == (across, down):
        return image
    if fit == "pad":
        return _padded(picture, (across, down), spec)
    if fit == "crop":
        scale = min(width / across, height / down)
        left, top = (width - across * scale) / 2, (height - down * scale) / 2
        box = (max(0.0, left), max(0.0, top), min(width, left + across * scale), min(height, top + down * scale))
    return np.asarray(picture.resize((across, down), Image.Resampling.BICUBIC, box=box))


def _padded(picture: Image.Image, size: Size, spec: ImageSpec) -> NDArray[np.uint8]:
    """Scales an image into `size` with its aspect ratio, and adds borders of the encoder's mean colour."""
    scale = min(size[0] / picture.width, size[1] / picture.height)
    width, height = (max(1, min(most, round(side * scale))) for side, most in zip(picture.size, size, strict=True))
    red, green, blue = (int(255 * mean) for mean in spec.mean)
    canvas = Image.new("RGB", size, (red, green, blue))
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    canvas.paste(resized, ((size[0] - width) // 2, (size[1] - height) // 2))
    return np.asarray(canvas)
