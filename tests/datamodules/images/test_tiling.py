"""Images as tiles: the grid for a size, the text for its tiles, and their pixels against those of the whole image."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from datamodules.images.decoding import EXTENSIONS, decode_image
from datamodules.images.limits import MAX_PIXELS
from datamodules.images.tile_reader import TileReader
from datamodules.images.tiling import TiledImage, TileGrid, Tiling, upright_size
from datamodules.images.transforms import Fit, ImageReader
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.types import ImageSpec

SIDE = 24
SPEC = ImageSpec(SIDE, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 4)
FITS: tuple[Fit, ...] = ("stretch", "pad", "crop")


def reader(most: int = 6, thumbnail: bool = True, fit: Fit = "stretch") -> TileReader:
    return TileReader(ImageReader(SPEC, fit), Tiling(SIDE, most, thumbnail))


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("size", "most", "grid"),
    [
        ((72, 24), 4, (1, 3)), ((24, 72), 4, (3, 1)), ((48, 48), 4, (2, 2)), ((480, 480), 4, (2, 2)),
        ((720, 240), 6, (1, 3)), ((64, 48), 6, (2, 3)), ((4000, 500), 8, (1, 8)), ((240, 720), 2, (2, 1)),
        ((1, 1), 64, (1, 1)), ((24, 24), 64, (1, 1)), ((25, 25), 64, (1, 1)), ((8, 3), 64, (1, 1)),
        ((480, 160), 1, (1, 1)), ((480, 160), 2, (1, 2)), ((8192, 8192), 9, (3, 3)), ((MAX_PIXELS, 1), 4, (1, 4)),
    ],
)  # fmt: skip
def test_the_grid_fits_the_aspect_and_is_no_larger_than_the_image(
    size: tuple[int, int], most: int, grid: tuple[int, int]
) -> None:
    several = grid != (1, 1)
    assert Tiling(SIDE, most).grid(size) == (*grid, several)
    assert Tiling(SIDE, most, thumbnail=False).grid(size) == (*grid, False)
    assert Tiling(SIDE, most).grid(size).tiles == grid[0] * grid[1] + several


def test_the_grids_of_the_page_are_right() -> None:
    page = (Path(__file__).parents[3] / "docs" / "resolution.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+ x \d+.*) \| (\d) x (\d) \| (\d) \|$", page, re.MULTILINE)
    assert len(rows) == 4
    for sizes, down, across, squares in rows:
        for size in sizes.split(", "):
            width, height = map(int, size.split(" x "))
            grid = Tiling(384, 4).grid((width, height))
            assert (grid.rows, grid.columns, grid.tiles) == (int(down), int(across), int(squares)), size


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 400), height=st.integers(1, 400), most=st.integers(1, 12))
def test_a_grid_is_turned_with_its_image_and_grows_with_the_tiles_allowed(width: int, height: int, most: int) -> None:
    tiling = Tiling(SIDE, most, thumbnail=False)
    grid, turned = tiling.grid((width, height)), tiling.grid((height, width))
    assert grid.tiles <= most
    assert grid.tiles == turned.tiles
    assert (turned.rows, turned.columns) in {(grid.columns, grid.rows), (grid.rows, grid.columns)}
    assert Tiling(SIDE, most + 1, thumbnail=False).grid((width, height)).tiles >= grid.tiles
    assert width * height > SIDE * SIDE or grid.tiles == 1 or max(width, height) > SIDE


def test_the_text_has_an_image_per_tile_and_marks_between_them() -> None:
    wide, square = (3 * SIDE, 2 * SIDE), (SIDE, SIDE)
    assert Tiling(SIDE, 6).text(wide, "i") == "iiiiiii"
    assert Tiling(SIDE, 6, marks="rows").text(wide, "i") == "iii\niii\ni"
    assert Tiling(SIDE, 6, thumbnail=False, marks="rows").text(wide, "i") == "iii\niii"
    assert Tiling(SIDE, 2, marks="tags").text((2 * SIDE, SIDE), "i") == "<row_1_col_1>i<row_1_col_2>i\n<global-img>i"
    for marks in ("none", "rows", "tags"):
        assert Tiling(SIDE, 6, marks=marks).text(square, "i") == "i"
    texts = [Tiling(SIDE, 6, marks="tags").text(size, "i") for size in Tiling(SIDE, 6, marks="tags").longest]
    assert max(map(len, texts)) == len(Tiling(SIDE, 6, marks="tags").text((SIDE, 6 * SIDE), "i"))


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(24, 24), (10, 10), (25, 24), (1, 1)])
def test_an_image_of_one_tile_is_what_it_is_without_tiles(fit: Fit, size: tuple[int, int]) -> None:
    image, tiled, plain = noise(*size), reader(fit=fit), ImageReader(SPEC, fit)
    assert torch.equal(tiled.pixels([tiled.cut(image)]), plain.pixels([image]))
    untiled = TileReader(plain)
    for other in (image, noise(90, 30)):
        assert torch.equal(untiled.pixels([untiled.cut(other)]), plain.pixels([other]))
    assert untiled.identity() == plain.identity()


@pytest.mark.parametrize("fit", FITS)
def test_tiles_are_cut_row_by_row_and_the_whole_image_follows(fit: Fit) -> None:
    image, tiled = noise(3 * SIDE, 2 * SIDE), reader(fit=fit)
    found = tiled.cut(image)
    assert found.size == (3 * SIDE, 2 * SIDE)
    parts = [image[r * SIDE : (r + 1) * SIDE, c * SIDE : (c + 1) * SIDE] for r in range(2) for c in range(3)]
    assert np.array_equal(found.tiles, [*parts, tiled.images.square(image)])
    assert len(reader(thumbnail=False, fit=fit).cut(image).tiles) == 6


def test_other_sizes_are_brought_to_the_pixels_of_the_grid() -> None:
    image, flat = noise(290, 100), np.full((100, 290, 3), 255, np.uint8)  # a grid of one row with three tiles
    stretched = Image.fromarray(image).resize((3 * SIDE, SIDE), Image.Resampling.BICUBIC)
    assert np.array_equal(np.concatenate(list(reader(3, False).cut(image).tiles), axis=1), stretched)
    padded = np.concatenate(list(reader(3, False, "pad").cut(flat).tiles), axis=1)
    assert (padded[:, 2:-2] == 255).all()  # the height fills the grid
    assert padded[0, 0].tolist() == [123, 116, 103]
    longer = np.full((100, 340, 3), 255, np.uint8)
    longer[:, 30:] = 0
    whole = [np.concatenate(list(reader(3, False, fit).cut(longer).tiles), axis=1)[..., 0] for fit in FITS]
    edges = [int((wide[12] > 128).sum()) for wide in whole]  # where the image begins to be black
    assert edges == [6, 6, 2]  # of 72, after 340 pixels are resized, and after the middle 300 are
    assert reader(3, False, "crop").cut(noise(500, 40)).tiles.shape == (3, SIDE, SIDE, 3)


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 200), height=st.integers(1, 200), fit=st.sampled_from(FITS))
def test_any_size_gives_the_tiles_of_its_grid(width: int, height: int, fit: Fit) -> None:
    tiled = reader(fit=fit)
    found = tiled.cut(noise(width, height))
    assert found.tiles.shape == (tiled.tiling.grid((width, height)).tiles, SIDE, SIDE, 3)
    assert tiled.pixels([found, found]).shape == (2 * len(found.tiles), 3, SIDE, SIDE)
    assert tiled.pixels([]).shape == (0, 3, SIDE, SIDE)


def test_only_what_changes_pixels_is_in_the_identity() -> None:
    plain = reader().identity()
    for tiling in (Tiling(SIDE, 5), Tiling(SIDE, 6, thumbnail=False)):
        assert TileReader(ImageReader(SPEC), tiling).identity() != plain
    assert TileReader(ImageReader(SPEC), Tiling(SIDE, 6, marks="rows")).identity() == plain


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_the_size_in_a_header_is_that_of_the_decoded_image(kind: str, orientation: int) -> None:
    exif, content = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    options: dict[str, Any] = {} if kind in ("GIF", "BMP") else {"exif": exif}
    Image.fromarray(noise(14, 10)).save(content, kind, **options)
    height, width = decode_image(content.getvalue()).shape[:2]
    assert upright_size(content.getvalue()) == (width, height)
    assert (width, height) == ((10, 14) if options and orientation >= 5 else (14, 10))


def test_a_png_that_says_behind_its_pixels_that_it_is_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, turned = io.BytesIO(), io.BytesIO()
    Image.fromarray(noise(14, 10)).save(plain, "PNG", pnginfo=PngImagePlugin.PngInfo())
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(14, 10)).save(turned, "PNG", exif=exif)
    start = turned.getvalue().index(b"eXIf") - 4
    chunk = turned.getvalue()[start : start + 12 + int.from_bytes(turned.getvalue()[start : start + 4], "big")]
    late = plain.getvalue()[:-12] + chunk + plain.getvalue()[-12:]
    assert decode_image(late).shape[:2] == (14, 10)
    assert upright_size(late) == (10, 14)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda image: pytest.fail("it was decoded"))
    assert upright_size(plain.getvalue()) == (14, 10)


def test_broken_and_large_images_are_refused_by_their_headers() -> None:
    assert EXTENSIONS  # of the formats above
    for content in (b"", b"no image", b"\x89PNG\r\n\x1a\n"):
        with pytest.raises(DataError, match="not a readable PNG"):
            upright_size(content)


def test_a_tiled_image_keeps_its_own_size() -> None:
    assert isinstance(reader().cut(noise(5, 7)), TiledImage)
    assert reader().cut(noise(5, 7)).size == (5, 7)
    assert TileGrid().tiles == 1
