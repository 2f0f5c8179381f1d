"""Images that mean harm or came to harm: forged headers, bombs, truncation and damage."""

import io
import struct
import subprocess
import sys
import tracemalloc
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import datamodules.images.png
from datamodules.images.decoding import decode_image, verify_image
from datamodules.images.limits import MAX_PIXELS
from fvl_lightning.core.errors import DataError


@cache
def encoded(kind: str, **options: Any) -> bytes:
    down, across = np.mgrid[0:60, 0:90]
    slopes = np.stack([across * 2, down * 3, across + down], axis=-1)
    noise = np.random.default_rng(0).integers(0, 50, slopes.shape)
    content = io.BytesIO()
    Image.fromarray((slopes + noise).astype(np.uint8)).save(content, kind, **options)
    return content.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def forged(kind: str, side: int) -> bytes:
    """A small image whose header promises side x side pixels."""
    if kind == "WEBP VP8X":
        body = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (side - 1).to_bytes(3, "little") * 2 + encoded("WEBP")[12:]
        return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
    content = bytearray(encoded("WEBP", lossless=True) if kind == "WEBP VP8L" else encoded(kind.split()[0]))
    match kind:
        case "PNG":
            content[8:33] = chunk(b"IHDR", struct.pack(">II", side, side) + bytes(content[24:29]))
        case "JPEG":
            start = content.index(b"\xff\xc0")
            content[start + 5 : start + 9] = struct.pack(">HH", side, side)
        case "WEBP VP8":
            content[26:30] = struct.pack("<HH", side, side)
        case "WEBP VP8L":
            bits = int.from_bytes(content[21:25], "little") >> 28 << 28 | (side - 1) << 14 | (side - 1)
            content[21:25] = bits.to_bytes(4, "little")
        case "GIF":
            content[6:10] = struct.pack("<HH", side, side)
        case "GIF frame":
            start = content.index(b"\x2c\0\0\0\0" + struct.pack("<HH", 90, 60))
            content[start + 5 : start + 9] = struct.pack("<HH", side, side)
        case "BMP":
            content[18:26] = struct.pack("<ii", side, side)
    return bytes(content)


FORGED = [
    *((kind, side) for kind in ("PNG", "JPEG", "GIF", "GIF frame", "BMP", "WEBP VP8X") for side in (9000, 20_000)),
    *((kind, side) for kind in ("WEBP VP8", "WEBP VP8L") for side in (9000, 16_383)),
]


@pytest.mark.parametrize(("kind", "side"), FORGED)
def test_forged_sizes_are_refused_by_their_header(kind: str, side: int) -> None:
    with pytest.raises(DataError, match=r"image of \d+ x \d+ pixels, at most|Image size \(\d+ pixels\) exceeds limit"):
        verify_image(forged(kind, side))


_REFUSE_IN_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
import simplejpeg
from PIL import Image
from datamodules.images.decoding import decode_image, to_png, verify_image
from fvl_lightning.core.errors import DataError

Image.init()
for path in sorted(Path(sys.argv[1]).glob("whole*")):
    for decoder in ("pillow", "simplejpeg"):
        decode_image(path, decoder)
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 100 * 1024**2
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    bytearray(150 * 1024**2)
    sys.exit("the limit does not hold")
except MemoryError:
    pass
for path in sorted(Path(sys.argv[1]).glob("forged*")):
    for read in (decode_image, lambda p: decode_image(p, "simplejpeg"), lambda p: decode_image(p, "simplejpeg", 64),
                 lambda p: verify_image(p.read_bytes()), lambda p: to_png(p.read_bytes())):
        try:
            read(path)
        except DataError as error:
            if "pixels" not in str(error):
                sys.exit(f"{path}: {error}")
        else:
            sys.exit(f"{path} was read")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is Linux's")
def test_forged_sizes_allocate_nothing(tmp_path: Path) -> None:
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        (tmp_path / f"whole {kind}").write_bytes(encoded(kind))
    for kind, side in FORGED:
        (tmp_path / f"forged {kind} {side}").write_bytes(forged(kind, side))
    command = [sys.executable, "-c", _REFUSE_IN_LITTLE_MEMORY, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_a_forged_size_within_the_limit_is_a_truncation() -> None:
    assert MAX_PIXELS > 4000 * 4000
    for kind in ("PNG", "GIF frame", "BMP", "WEBP VP8", "WEBP VP8L"):
        with pytest.raises(DataError, match=r"^not a readable PNG, JPEG, WebP, GIF or BMP \("):
            verify_image(forged(kind, 4000))


@pytest.mark.parametrize("place", [33, -12])
@pytest.mark.parametrize(
    ("kind", "start"),
    [(b"zTXt", b"comment\0\0"), (b"iTXt", b"comment\0\1\0\0\0"), (b"iCCP", b"profile\0\0")],
)
def test_compressed_text_of_a_png_is_bounded(kind: bytes, start: bytes, place: int) -> None:
    """It is left out, and not unpacked to its end to find that out."""
    png = encoded("PNG")
    bomb = chunk(kind, start + zlib.compress(bytes(20_000_000)))
    forged_png = png[:place] + bomb + png[place:]
    tracemalloc.start()
    pixels = decode_image(forged_png)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(pixels, decode_image(png))
    assert peak < 5 * 2**20


def test_many_texts_of_a_png_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    png = encoded("PNG")
    text = chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(1_000_000)))
    expected = decode_image(png)
    unpacked: list[int] = []
    size = datamodules.images.png._size
    monkeypatch.setattr(datamodules.images.png, "_size", lambda *chunk: unpacked.append(0) or size(*chunk))
    assert np.array_equal(decode_image(png[:33] + text * 3000 + png[33:]), expected)
    assert len(unpacked) <= 17, "what has no room is not unpacked"


def test_scans_of_a_jpeg_are_bounded() -> None:
    progressive = encoded("JPEG", progressive=True)
    last = progressive.rindex(b"\xff\xda")
    with pytest.raises(DataError, match=r"^JPEG of \d+ scans, at most 100 are read"):
        verify_image(progressive[:last] + progressive[last:-2] * 100 + b"\xff\xd9")
    assert verify_image(progressive).width == 90


TRUNCATED = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("JPEG", {"quality": 95, "subsampling": "4:4:4"}),
    ("PNG", {}),
    ("WEBP", {}),
    ("WEBP", {"lossless": True}),
    ("GIF", {}),
    ("BMP", {}),
]


@pytest.mark.parametrize(("kind", "options"), TRUNCATED)
@pytest.mark.parametrize("percent", [*range(0, 100, 10), 99])
def test_truncation_is_found(kind: str, options: dict[str, Any], percent: int) -> None:
    whole = encoded(kind, **options)
    cut = whole[: len(whole) * percent // 100]
    for read in (verify_image, decode_image, lambda content: decode_image(content, "simplejpeg")):
        with pytest.raises(DataError, match=r"^not a readable PNG, JPEG, WebP, GIF or BMP \("):
            read(cut)


@settings(max_examples=200, deadline=None)
@given(
    case=st.sampled_from(TRUNCATED),
    places=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=4),
    early=st.booleans(),
)
def test_damage_is_a_data_error_or_an_image(
    case: tuple[str, dict[str, Any]], places: list[tuple[int, int]], early: bool
) -> None:
    kind, options = case
    content = bytearray(encoded(kind, **options))
    for place, value in places:
        content[place % (64 if early else len(content))] = value
    try:
        header = verify_image(bytes(content))
    except DataError:
        return
    for decoder in ("pillow", "simplejpeg"):
        pixels = decode_image(bytes(content), decoder)
        assert pixels.shape == (header.height, header.width, 3)
