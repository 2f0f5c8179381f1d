"""Decoding of images from outside: what is read, against Pillow and numpy, and what is refused."""

import io
import struct
import sys
import warnings
import zlib
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps
from PIL.ExifTags import Base
from PIL.PngImagePlugin import PngInfo

from datamodules.images import decoding as images
from datamodules.images import limits, png
from datamodules.images.decoding import Decoder, ImageHeader, decode_image, to_png, verify_image
from fvl_lightning.core.errors import ConfigError, DataError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
DECODERS: tuple[Decoder, ...] = get_args(Decoder)
SIMPLEJPEG_TOLERANCE = 2
"""Levels of 255 by which two builds of libjpeg-turbo may differ in a pixel; with the pinned versions it is 0."""


def picture(height: int = 60, width: int = 90) -> Image.Image:
    """Slopes with some noise: no symmetry, and a JPEG comes near it."""
    down, across = np.mgrid[0:height, 0:width]
    slopes = np.stack([across * 200 / width, down * 200 / height, (across + down) * 200 / (height + width)], axis=-1)
    noise = np.random.default_rng(0).integers(0, 50, slopes.shape)
    return Image.fromarray((slopes + noise).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def by_pillow(content: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(content)) as image:
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def levels_apart(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> int:
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", FORMATS)
def test_formats(kind: str, decoder: Decoder) -> None:
    content = encoded(picture(), kind)
    pixels = decode_image(content, decoder)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (60, 90, 3)
    assert levels_apart(pixels, by_pillow(content)) <= SIMPLEJPEG_TOLERANCE
    assert verify_image(content) == ImageHeader(kind, width=90, height=60)


@pytest.mark.parametrize("quality", [30, 95])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_both_decoders_see_the_same_jpeg(quality: int, subsampling: str, progressive: bool) -> None:
    options = {"quality": quality, "subsampling": subsampling, "progressive": progressive}
    content = encoded(picture(), "JPEG", **options)
    for at_least in (None, 15):
        one, other = (decode_image(content, decoder, at_least) for decoder in DECODERS)
        assert levels_apart(one, other) <= SIMPLEJPEG_TOLERANCE


def test_simplejpeg_decodes_colour_and_grey_and_leaves_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    import simplejpeg

    decoded = []

    def recording(content: bytes, *args: Any, **options: Any) -> NDArray[np.uint8]:
        decoded.append(content)
        return simplejpeg.decode_jpeg(content, *args, **options)

    class Recorder:
        decode_jpeg = staticmethod(recording)

    monkeypatch.setitem(sys.modules, "simplejpeg", Recorder)
    colour, grey, cmyk = (encoded(picture().convert(mode), "JPEG") for mode in ("RGB", "L", "CMYK"))
    for content in (colour, grey, cmyk, encoded(picture(), "PNG")):
        assert levels_apart(decode_image(content, "simplejpeg"), by_pillow(content)) <= SIMPLEJPEG_TOLERANCE
    assert decoded == [colour, grey]


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation: int, kind: str, decoder: Decoder) -> None:
    exif = Image.Exif()
    exif[Base.Orientation] = orientation
    content = encoded(picture(), kind, exif=exif)
    pixels = decode_image(content, decoder)
    assert pixels.shape == ((90, 60, 3) if orientation >= 5 else (60, 90, 3))
    assert levels_apart(pixels, by_pillow(content)) <= SIMPLEJPEG_TOLERANCE
    header = verify_image(content)
    assert (header.height, header.width) == pixels.shape[:2]


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"])
def test_a_broken_exif_block_leaves_the_image_as_it_is(exif: bytes) -> None:
    content = encoded(picture(), "JPEG", exif=exif)
    assert levels_apart(decode_image(content), by_pillow(encoded(picture(), "JPEG"))) == 0
    assert verify_image(content) == ImageHeader("JPEG", 90, 60)


def test_grey_of_16_bits_is_scaled() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    pixels = decode_image(encoded(Image.fromarray(values), "PNG"))
    expected = np.rint(values / 257).astype(np.uint8)
    assert np.array_equal(pixels, np.stack([expected] * 3, axis=-1))


def test_a_grey_of_16_bits_that_is_transparent_is_white() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    pixels = decode_image(encoded(Image.fromarray(values), "PNG", transparency=300))
    expected = np.where(values == 300, 255, np.rint(values / 257)).astype(np.uint8)
    assert np.array_equal(pixels, np.stack([expected] * 3, axis=-1))


def by_hand(depth: int, colour: int, row: bytes, transparent: bytes) -> bytes:
    """A PNG of one row of four pixels, in a kind that Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, depth, colour, 0, 0, 0))
    data = chunk(b"tRNS", transparent) + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + data


def test_a_transparent_value_of_another_depth_is_white() -> None:
    two_bits = decode_image(by_hand(2, 0, bytes([0b00011011]), struct.pack(">H", 1)))
    assert two_bits[0, :, 0].tolist() == [0, 255, 170, 255]
    four_bits = decode_image(by_hand(4, 0, bytes([0x02, 0x8F]), struct.pack(">H", 8)))
    assert four_bits[0, :, 0].tolist() == [0, 34, 255, 255]
    colours = [(1000, 2000, 3000), (232 << 8, 208 << 8, 184 << 8), (0, 0, 0), (65535, 0, 0)]
    sixteen = by_hand(16, 2, struct.pack(">12H", *chain.from_iterable(colours)), struct.pack(">3H", *colours[0]))
    assert decode_image(sixteen)[0].tolist() == [[255, 255, 255], [232, 208, 184], [0, 0, 0], [255, 0, 0]]
    with Image.open(io.BytesIO(sixteen)) as opened:
        assert np.array_equal(images.loaded_pixels(opened), decode_image(sixteen))


def texts(*added: tuple[str, str, bool]) -> PngInfo:
    """Texts of a PNG: name, content, and whether it is packed."""
    info = PngInfo()
    for name, content, packed in added:
        info.add_text(name, content, zip=packed)
        info.add_itxt(name, content, zip=packed)
    return info


LARGE: dict[str, dict[str, Any]] = {
    "profile": {"icc_profile": bytes(png.MAX_CHUNK_BYTES + 1)},
    "packed": {"pnginfo": texts(("a", "x" * (png.MAX_CHUNK_BYTES + 1), True))},
    "plain": {"pnginfo": texts(("a", "x" * (png.MAX_CHUNK_BYTES + 1), False))},
    "many": {"pnginfo": texts(*(("a", "x" * png.MAX_CHUNK_BYTES, True) for _ in range(70)))},
    "long": {"pnginfo": texts(*(("a", "x" * (4 * png.MAX_CHUNK_BYTES), False) for _ in range(10)))},
}


@pytest.mark.parametrize("options", LARGE.values(), ids=LARGE)
def test_metadata_of_a_png_is_no_reason_to_refuse_it(options: dict[str, Any]) -> None:
    exif = Image.Exif()
    exif[Base.Orientation] = 6
    content = encoded(picture(), "PNG", exif=exif, **options)
    assert levels_apart(decode_image(content), by_pillow(encoded(picture(), "PNG", exif=exif))) == 0
    assert verify_image(content) == ImageHeader("PNG", 60, 90)


def test_metadata_that_pillow_takes_is_left_in_place() -> None:
    """EXIF may be in a text, so a picture could be turned without it."""
    content = encoded(picture(), "PNG", icc_profile=bytes(png.MAX_CHUNK_BYTES), **LARGE["plain"])
    assert png.without_large_metadata(content) is content
    for broken in (content[:-30], content[:100], content[:40] + b"iCCP" * 9 + content[40:]):
        assert png.without_large_metadata(broken) == broken


def on_white(colour: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    share = alpha[..., None] / 255
    return np.rint(colour * share + 255 * (1 - share)).astype(np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_alpha_is_composited_on_white(mode: str, kind: str) -> None:
    colour = picture(64, 256).convert(mode)
    alpha = np.tile(np.arange(256, dtype=np.uint8), (64, 1))
    layered = colour.copy()
    layered.putalpha(Image.fromarray(alpha))
    assert layered.mode == mode + "A"
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    pixels = decode_image(encoded(layered, kind, **options))
    assert levels_apart(pixels, on_white(np.array(colour.convert("RGB")), alpha)) <= 1


def test_palettes_and_colour_keys_are_composited_on_white() -> None:
    indices = np.tile(np.arange(4, dtype=np.uint8), (3, 1))
    palette = Image.fromarray(indices)
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    colours = np.array(palette.convert("RGB"))
    assert np.array_equal(decode_image(encoded(palette, "PNG")), colours)
    assert np.array_equal(decode_image(encoded(palette, "GIF")), colours)

    alphas = np.array([0, 128, 255, 255], np.uint8)
    partly = decode_image(encoded(palette, "PNG", transparency=bytes(alphas)))
    assert levels_apart(partly, on_white(colours, alphas[indices])) <= 1
    keyed = np.where(indices[..., None] == 2, 255, colours)
    assert np.array_equal(decode_image(encoded(palette, "GIF", transparency=2)), keyed)
    assert np.array_equal(decode_image(encoded(palette, "PNG", transparency=2)), keyed)
    assert np.array_equal(decode_image(encoded(palette.convert("RGB"), "PNG", transparency=(70, 80, 90))), keyed)


def test_bilevel_images_are_black_and_white() -> None:
    spots = np.random.default_rng(0).random((9, 13)) < 0.5
    for kind in ("PNG", "BMP"):
        pixels = decode_image(encoded(Image.fromarray(spots), kind))
        assert np.array_equal(pixels, np.stack([spots * 255] * 3, axis=-1))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_wider_pixels_are_refused(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = Image.new(mode, (2, 2))
    wide.format = "PNG"
    monkeypatch.setattr(Image, "open", lambda *args, **options: wide)
    for read in (decode_image, verify_image):
        with pytest.raises(DataError, match=f"^image with pixels of mode {mode}: only 8-bit images and 16-bit grey"):
            read(b"")


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (32, 24), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)
    assert np.array_equal(decode_image(content), np.array(frames[0]))
    assert verify_image(content) == ImageHeader(kind, 32, 24)


def test_the_first_picture_of_an_mpo() -> None:
    content = encoded(picture(), "MPO", save_all=True, append_images=[Image.new("RGB", (90, 60))])
    assert Image.open(io.BytesIO(content)).format == "MPO"
    first = by_pillow(content)
    for decoder in DECODERS:
        assert levels_apart(decode_image(content, decoder), first) <= SIMPLEJPEG_TOLERANCE
    assert verify_image(content) == ImageHeader("JPEG", 90, 60)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    ("at_least", "height", "width"),
    [(8, 8, 12), (9, 16, 24), (16, 16, 24), (17, 32, 47), (33, 63, 94), (63, 63, 94), (64, 63, 94)],
)
def test_at_least_is_the_smallest_scale_that_suffices(at_least: int, height: int, width: int, decoder: Decoder) -> None:
    content = encoded(picture(63, 94), "JPEG")
    pixels = decode_image(content, decoder, at_least)
    assert pixels.shape == (height, width, 3)
    full = Image.fromarray(by_pillow(content)).resize((width, height), Image.Resampling.BOX)
    assert np.abs(pixels.astype(int) - np.array(full)).mean() < 3
    assert decode_image(encoded(picture(63, 94), "PNG"), decoder, at_least).shape == (63, 94, 3)


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 70), width=st.integers(1, 70), at_least=st.integers(1, 80))
def test_scaled_decoding_agrees_at_any_size(height: int, width: int, at_least: int) -> None:
    content = encoded(picture(height, width), "JPEG")
    one, other = (decode_image(content, decoder, at_least) for decoder in DECODERS)
    assert one.shape == other.shape
    assert min(one.shape[:2]) >= min(at_least, height, width)


@pytest.mark.parametrize("kind", FORMATS)
def test_to_png_keeps_every_pixel(kind: str) -> None:
    content = encoded(picture(), kind)
    png = to_png(content)
    assert verify_image(png) == ImageHeader("PNG", 90, 60)
    assert np.array_equal(decode_image(png), decode_image(content))


def test_a_file_is_read_and_named_where_it_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(picture(), "PNG")
    path = tmp_path / "cat.png"
    path.write_bytes(content)
    assert np.array_equal(decode_image(path), decode_image(content))
    with pytest.raises(DataError, match=r"^no image .*dog.png$"):
        decode_image(tmp_path / "dog.png")
    with pytest.raises(DataError, match=f"^{tmp_path}: not a file"):
        decode_image(tmp_path)
    path.write_bytes(content[:-50])
    with pytest.raises(DataError, match=r"^.*cat.png: not a readable PNG, JPEG, WebP, GIF or BMP \("):
        decode_image(path)
    monkeypatch.setattr(limits, "MAX_BYTES", len(content) - 1)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"^.*cat.png: image of \d+ bytes, at most \d+ are read"):
        decode_image(path)
    with pytest.raises(DataError, match=r"^image of \d+ bytes, at most \d+ are read"):
        verify_image(content)


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "ICO", "TGA"])
def test_other_formats_are_refused(kind: str) -> None:
    with pytest.raises(DataError, match=r"^not a readable PNG, JPEG, WebP, GIF or BMP \("):
        decode_image(encoded(picture(), kind))


def test_a_missing_simplejpeg_is_said_for_any_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    with pytest.raises(ConfigError, match=r"fvl-lightning\[simplejpeg\]"):
        decode_image(encoded(picture(), "PNG"), "simplejpeg")


def test_forgiveness_of_truncation_is_no_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ConfigError, match="LOAD_TRUNCATED_IMAGES"):
        verify_image(encoded(picture(), "PNG"))


def test_warnings_do_not_leak() -> None:
    content = bytearray(encoded(Image.new("RGB", (1, 1)), "BMP"))
    content[18:26] = (10_000).to_bytes(4, "little") * 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match="image of 10000 x 10000 pixels"):
            decode_image(bytes(content))
        palette = encoded(picture().quantize(4), "PNG", transparency=bytes([0, 9, 255, 255]))
        assert decode_image(palette).shape == (60, 90, 3)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(io.BytesIO(bytes(content)))
