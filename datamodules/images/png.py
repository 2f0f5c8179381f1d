"""Metadata of PNGs that Pillow refuses a whole picture for; every viewer shows such a picture."""

import zlib

LARGEST = 2**20
"""A colour profile or a packed text of more bytes than this, unpacked, is left out."""

MOST = 16 * 2**20
"""All profiles and texts together may have this many bytes unpacked; what follows is left out unread."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_METADATA = (b"iCCP", b"zTXt", b"iTXt", b"tEXt")
_AROUND = 12
"""Bytes of a chunk that are not its data: length and name in front, checksum behind."""


def without_large_metadata(content: bytes) -> bytes:
    """Returns a PNG without metadata that is large when unpacked; any other content as it is.

    Pixels do not depend on what is left out: colour profiles are not applied. EXIF has a chunk of its own, which stays.
    """
    if not content.startswith(_SIGNATURE):
        return content
    kept, start, place, room = [], 0, len(_SIGNATURE), MOST
    while place + _AROUND <= len(content):
        end = place + _AROUND + int.from_bytes(content[place : place + 4], "big")
        name = content[place + 4 : place + 8]
        if name in _METADATA:
            size = _size(name, content[place + 8 : end - 4]) if room > 0 else None
            fits = size is not None and size <= room
            room -= LARGEST if size is None else size
            if not fits:
                kept.append(content[start:place])
                start = end
        place = end
    return b"".join([*kept, content[start:]]) if start else content


def _size(name: bytes, data: bytes) -> int | None:
    """Returns the bytes of a text or profile unpacked; None where it is packed and has more than LARGEST."""
    packed = b""
    if name in (b"iCCP", b"zTXt"):
        packed = data.partition(b"\0")[2][1:]
    elif name == b"iTXt":
        rest = data.partition(b"\0")[2]  # a flag, a method, two texts that end with a zero, and what may be packed
        packed = rest[2:].split(b"\0", 2)[-1] if rest[:1] == b"\1" else b""
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(packed, LARGEST)
    except zlib.error:  # Pillow takes it for an empty one
        return len(data)
    return None if unpacker.unconsumed_tail else max(len(data), len(unpacked))
