"""Decodes untrusted images, with limits that are checked before any decoder runs."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.ExifTags import Base

from datamodules.images.limits import MAX_PIXELS, MAX_PIXELS_TOGETHER, refuse_length, refuse_size
from datamodules.images.png import without_large_metadata
from fvl_lightning.core.errors import ConfigError, DataError

Decoder = Literal["pillow", "simplejpeg"]

FORMATS = {"PNG": ("png",), "JPEG": ("jpg", "jpeg"), "WEBP": ("webp",), "GIF": ("gif",), "BMP": ("bmp",)}
"""Supported formats by Pillow's names, and their file extensions; every source and command uses this list."""

EXTENSIONS = tuple(extension for extensions in FORMATS.values() for extension in extensions)
"""Extensions of all supported formats, in lower case and without a dot."""

_UNREADABLE = "not a readable PNG, JPEG, WebP, GIF or BMP"
_MAX_SCANS = 100  # every scan of a progressive JPEG is a pass over all pixels and may be only a few bytes long
_SCAN = b"\xff\xda"
_EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK")
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_GREY_STEPS = {"L;2": 85, "L;4": 17}  # step between two grey levels, by Pillow's names of 2 and 4 bits
_SCALES = (8, 4, 2, 1)


@dataclass(frozen=True)
class ImageHeader:
    """The format (PNG, JPEG, WEBP, GIF or BMP) of an image, and its size in pixels after EXIF rotation."""

    format: str
    width: int
    height: int


def decode_image(source: bytes | Path, decoder: Decoder = "pillow", at_least: int | None = None) -> NDArray[np.uint8]:
    """Decodes the first frame of a PNG, JPEG, WebP, GIF or BMP to RGB [height, width, 3], rotated by its EXIF data.

    Transparent pixels are composited on white; 16-bit grey is scaled to 8 bits. The array may be read-only.

    Args:
        source: the encoded image, or its file.
        decoder: "simplejpeg" decodes RGB and grey JPEGs faster; Pillow decodes everything else.
        at_least: decodes a JPEG at 1/8, 1/4 or 1/2 if both sides keep this many pixels; ignored for other formats.

    Raises:
        ConfigError: simplejpeg is not installed.
        DataError: no such file, another format, broken, truncated, longer than MAX_BYTES or, by its header, larger
            than MAX_PIXELS. The message names the file.
    """
    simplejpeg = _import_simplejpeg() if decoder == "simplejpeg" else None
    content, name = (_read(source), f"{source}: ") if isinstance(source, Path) else (source, "")
    with _opened(content, name) as image:
        scale = _scale(image, at_least) if at_least is not None and _format(image) == "JPEG" else 1
        pixels = None
        if simplejpeg is not None and _format(image) == "JPEG" and image.mode in ("L", "RGB"):
            pixels = _decode_jpeg(simplejpeg, content, image.size, scale)
        if pixels is None:
            pixels = _decode(image, scale)
        return _upright(pixels, _orientation(image))


def loaded_pixels(image: Image.Image, at_least: int | None = None) -> NDArray[np.uint8]:
    """Converts a Pillow image to the array that decode_image returns; raises the same DataErrors.

    Args:
        image: an image that Pillow has opened, and may have loaded.
        at_least: as in decode_image, for a JPEG that has been opened but not loaded.
    """
    refuse_size(image.size)
    try:
        scale = _scale(image, at_least) if at_least is not None and image.format in ("JPEG", "MPO") else 1
        return _upright(_decode(image, scale), _orientation(image))
    except OSError as error:  # it may have been opened and not yet read
        raise DataError(f"the image cannot be read: {_one_line(error)}") from None


def image_size(source: bytes | Path) -> tuple[int, int]:
    """Returns width and height of an image by its header, before EXIF rotation; DataErrors as of decode_image."""
    with _opened(_read(source) if isinstance(source, Path) else source) as image:
        return image.size


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


def verify_image(data: bytes) -> ImageHeader:
    """Checks that the first frame is complete, with as little decoding as possible, and returns the header.

    A JPEG whose rows end early at a proper end marker passes, as in every viewer: the rest of it is grey.

    Raises:
        DataError: decode_image would refuse the image.
    """
    with _opened(data) as image:
        width, height = image.size
        # Grey at an eighth of the size still reads all entropy-coded data, but saves the rest of the decoding.
        image.draft("L", (1, 1))
        image.load()
        _refuse_mode(image)
        if _orientation(image) >= 5:
            width, height = height, width
        return ImageHeader(_format(image), width, height)


def to_png(data: bytes) -> bytes:
    """Returns the first frame of an image that decode_image reads, as an RGB PNG rotated by its EXIF data.

    Raises:
        DataError: as in decode_image.
    """
    content = BytesIO()
    Image.fromarray(decode_image(data)).save(content, "PNG")
    return content.getvalue()


def _read(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise DataError("not a file, so it cannot be read as an image")
        refuse_length(path.stat().st_size)
        return path.read_bytes()
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise DataError(f"no image {path}") from None
    except OSError as error:
        raise DataError(f"image {path} cannot be read: {error.strerror}") from None


@contextmanager
def _opened(content: bytes, name: str = "") -> Iterator[Image.Image]:
    """Yields an image with a checked header, not yet decoded; turns every error inside the block into a DataError."""
    if ImageFile.LOAD_TRUNCATED_IMAGES:  # a plugin may have set it
        raise ConfigError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES must be False, so that truncated images are detected")
    try:
        refuse_length(len(content))
        refuse_size(_webp_size(content))
        if content.startswith(b"\xff\xd8") and content.count(_SCAN) > _MAX_SCANS:
            raise DataError(f"JPEG of {content.count(_SCAN)} scans, at most {_MAX_SCANS} are read")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(BytesIO(without_large_metadata(content)), formats=tuple(FORMATS)) as image:
                refuse_size(image.size)
                yield image
    except DataError as error:
        raise DataError(f"{name}{error}") from None
    except UnidentifiedImageError:
        raise DataError(f"{name}{_UNREADABLE} (none of these, or its header is broken)") from None
    except ConfigError:
        raise
    except Exception as error:  # decoders raise many kinds of errors for broken bytes
        raise DataError(f"{name}{_UNREADABLE} ({_one_line(error)})") from None


def _webp_size(content: bytes) -> tuple[int, int] | None:
    """Returns the size in a WebP's header, None for other formats; Pillow allocates the canvas as it opens a file."""
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP" or len(content) < 30:
        return None

    def number(start: int, length: int) -> int:
        return int.from_bytes(content[start : start + length], "little")

    match content[12:16]:
        case b"VP8X":
            return 1 + number(24, 3), 1 + number(27, 3)
        case b"VP8L":
            return 1 + (number(21, 4) & 0x3FFF), 1 + (number(21, 4) >> 14 & 0x3FFF)
        case b"VP8 ":
            return number(26, 2) & 0x3FFF, number(28, 2) & 0x3FFF
    return None


def _format(image: Image.Image) -> str:
    assert image.format is not None
    return "JPEG" if image.format == "MPO" else image.format  # MPO: several JPEGs in one file, as phones write them


def _scale(image: Image.Image, at_least: int) -> int:
    """Returns the largest scale s for which both sides at 1/s are >= at_least; 1 where there is none."""
    shortest = min(image.size)
    # draft() would choose another scale for a side shorter than s.
    return next((s for s in _SCALES if s <= shortest and -(-shortest // s) >= at_least), 1)


def _import_simplejpeg() -> Any:
    try:
        return import_module("simplejpeg")
    except ImportError:
        raise ConfigError("decoder 'simplejpeg' needs its package: pip install 'fvl-lightning[simplejpeg]'") from None


def _decode_jpeg(simplejpeg: Any, content: bytes, size: tuple[int, int], scale: int) -> NDArray[np.uint8] | None:
    """Returns the pixels as stored [h, w, 3]; None for a faulty JPEG, which Pillow may still accept."""
    width, height = (-(-side // scale) for side in size)  # libjpeg rounds up
    # The buffer has the checked size: if the decoders read different headers, this one fails without allocating.
    pixels = np.empty((height, width, 3), np.uint8)
    try:
        decoded = simplejpeg.decode_jpeg(content, "RGB", min_height=height, min_width=width, buffer=pixels)
    except ValueError:
        return None
    return pixels if decoded.shape == pixels.shape else None


def _refuse_mode(image: Image.Image) -> None:
    if image.mode not in (*_EIGHT_BIT, *_SIXTEEN_BIT):
        raise DataError(f"image with pixels of mode {image.mode}: only 8-bit images and 16-bit grey images can be read")


def _decode(image: Image.Image, scale: int) -> NDArray[np.uint8]:
    """Decodes the pixels as stored [h, w, 3] with Pillow."""
    if scale > 1:
        image.draft(None, (image.width // scale, image.height // scale))
    _scale_transparent_value(image)
    image.load()
    return _to_rgb(image)


def _scale_transparent_value(image: Image.Image) -> None:
    """Scales a PNG's transparent value to 8 bits like its pixels; Pillow leaves it as stored."""
    if not isinstance(image, ImageFile.ImageFile) or image.format != "PNG" or not image.tile:
        return
    value, stored = image.info.get("transparency"), image.tile[0].args
    if stored in _GREY_STEPS and isinstance(value, int):
        image.info["transparency"] = value * _GREY_STEPS[stored]
    elif stored == "RGB;16B" and isinstance(value, tuple):
        image.info["transparency"] = tuple(channel >> 8 for channel in value)


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Converts a loaded image to [height, width, 3]."""
    _refuse_mode(image)
    if image.mode in _SIXTEEN_BIT:
        stored = np.asarray(image).astype(np.uint32)
        grey = (stored + 128) // 257
        if "transparency" in image.info:  # the single transparent value
            grey[stored == image.info["transparency"]] = 255
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(layer, mask=layer)
        return np.asarray(canvas)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 to 8; 1 is upright."""
    try:
        value = image.getexif().get(Base.Orientation, 1)
    except Exception:  # the pixels may be fine where the EXIF block is broken
        return 1
    return value if value in range(1, 9) else 1


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    if orientation == 1:
        return pixels
    turned = pixels.swapaxes(0, 1) if orientation >= 5 else pixels
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(turned[::rows, ::columns])


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
