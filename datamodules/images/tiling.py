"""The rule by which images become tiles: the grid that suits an image's size, and the text that stands for its tiles.

An image with one tile has no thumbnail and no marks: it is what it is without tiles.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

# decoding.py keeps its text, which is a part of the keys of feature caches; so these two have no public names.
from datamodules.images.decoding import _opened as opened
from datamodules.images.decoding import _orientation as orientation_of
from fvl_lightning.core.config.fields import number

MAX_TILES = 64
"""Largest number of tiles of an image that can be asked for."""

Marks = Literal["none", "rows", "tags"]
Size = tuple[int, int]
"""Width and height of an upright image in pixels."""

_ENOUGH = 9, 10
"""A grid with fewer tiles is taken if it keeps this fraction of the pixels that the best grid keeps."""
_ENLARGED = 4
"""The tiles of an image have at most this many times its own pixels."""
_PNG_ORIENTATION = b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp"
"""Where a PNG can say that it is turned. For another one Pillow decodes all pixels to look for it behind them."""


@dataclass
class Tiles:
    """Images as several tiles, each with as many tokens as an image has without tiles."""

    max: int = number(4, at_least=1, at_most=MAX_TILES)
    """Largest number of tiles of an image, not counting its thumbnail. Small images have fewer."""
    thumbnail: bool = True
    """Show an image of several tiles also as a whole, after its tiles."""
    marks: Marks = "none"
    """Text between tiles: a line break after each row of tiles (rows), or also a tag with row and column before each
    tile (tags)."""

    @property
    def most(self) -> int:
        """Largest number of tiles of an image, with its thumbnail."""
        return self.max + (self.thumbnail and self.max > 1)


class TileGrid(NamedTuple):
    """Rows and columns of tiles, and whether the whole image follows them."""

    rows: int = 1
    columns: int = 1
    thumbnail: bool = False

    @property
    def tiles(self) -> int:
        """Number of squares that the encoder gets, with the thumbnail."""
        return self.rows * self.columns + self.thumbnail


@dataclass(frozen=True)
class Tiling:
    """The rule by which images become tiles of `side` pixels; the other fields are those of Tiles."""

    side: int
    max: int
    thumbnail: bool = True
    marks: Marks = "none"

    @classmethod
    def of(cls, tiles: Tiles | None, side: int) -> Self | None:
        """Returns the rule of a configuration for an encoder of `side` pixels; None for no tiles."""
        return None if tiles is None else cls(side, tiles.max, tiles.thumbnail, tiles.marks)

    def grid(self, size: Size) -> TileGrid:
        """Returns the grid for an image of this size.

        An image that is scaled into a grid with its aspect ratio keeps some of its pixels. The grid is the one with the
        fewest tiles among those that keep 9/10 of the pixels that the best one keeps.
        """
        rows, columns = _shape(size, self.side, self.max)
        return TileGrid(rows, columns, self.thumbnail and rows * columns > 1)

    def text(self, size: Size, image: str) -> str:
        """Returns the text for an image of this size: `image` for each tile, with the marks between them."""
        grid = self.grid(size)
        if grid.tiles == 1:
            return image
        tags = self.marks == "tags"
        rows = [
            "".join(f"<row_{row}_col_{column}>{image}" if tags else image for column in range(1, grid.columns + 1))
            for row in range(1, grid.rows + 1)
        ]
        if grid.thumbnail:
            rows.append(f"<global-img>{image}" if tags else image)
        return ("" if self.marks == "none" else "\n").join(rows)

    @property
    def most(self) -> int:
        """Largest number of tiles of an image, with its thumbnail."""
        return Tiles(self.max, self.thumbnail).most

    @property
    def longest(self) -> list[Size]:
        """Sizes of images of which one has the longest text."""
        largest = [(rows, columns) for rows, columns in _shapes(self.max) if 2 * rows * columns > self.max]
        return [(columns * self.side, rows * self.side) for rows, columns in largest]


@dataclass(frozen=True, eq=False)
class TiledImage:
    """The tiles of an image [T, P, P, 3] of 0-255, and its own size."""

    tiles: NDArray[np.uint8]
    size: Size


def upright_size(content: bytes) -> Size:
    """Returns width and height of an encoded image after EXIF rotation, by its header; DataErrors as of decode_image.

    A PNG with EXIF or XMP data is decoded.
    """
    with opened(content) as image:
        width, height = image.size
        if image.format == "PNG" and not any(name in content for name in _PNG_ORIENTATION):
            return width, height
        return (height, width) if orientation_of(image) >= 5 else (width, height)


def _shapes(most: int) -> list[tuple[int, int]]:
    """Returns (rows, columns) of all grids of at most `most` tiles."""
    return [(rows, columns) for rows in range(1, most + 1) for columns in range(1, most // rows + 1)]


@lru_cache(maxsize=4096)
def _shape(size: Size, side: int, most: int) -> tuple[int, int]:
    """Returns rows and columns of the grid for an image; of several that are equally good, the one with fewest rows."""
    most = max(1, min(most, _ENLARGED * size[0] * size[1] // side**2))
    kept = {shape: _kept_pixels(size, shape, side) for shape in _shapes(most)}
    share, whole = _ENOUGH
    best = max(kept.values())
    enough = [shape for shape in kept if whole * kept[shape] >= share * best]
    return min(enough, key=lambda shape: (shape[0] * shape[1], -kept[shape], shape))


def _kept_pixels(size: Size, shape: tuple[int, int], side: int) -> int:
    """Returns how many pixels an image has after it is scaled into a grid with its aspect ratio, at most its own."""
    (width, height), (down, across) = size, (number * side for number in shape)
    if across * height <= down * width:  # the width fills the grid
        down = max(1, across * height // width)
    else:
        across = max(1, down * width // height)
    return min(across * down, width * height)
