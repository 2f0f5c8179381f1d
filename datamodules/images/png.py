"""Removes large PNG metadata, for which Pillow refuses an image that every viewer shows."""

import zlib

MAX_CHUNK_BYTES = 2**20
"""A colour profile or compressed text with more decompressed bytes is removed."""

MAX_METADATA_BYTES = 16 * 2**20
"""Limit of the decompressed bytes of all profiles and texts; further ones are removed unread."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_METADATA = (b"iCCP", b"zTXt", b"iTXt", b"tEXt")
_AROUND = 12
"""Bytes of a chunk besides its data: length and name before it, checksum after it."""


def without_large_metadata(content: bytes) -> bytes:
    """Returns a PNG without metadata that is large when decompressed; other content is returned unchanged.

    The pixels do not depend on what is removed: colour profiles are not applied, and EXIF data is kept.
    """
    if not content.startswith(_SIGNATURE):
        return content
    kept, start, place, room = [], 0, len(_SIGNATURE), MAX_METADATA_BYTES
    while place + _AROUND <= len(content):
        end = place + _AROUND + int.from_bytes(content[place : place + 4], "big")
        name = content[place + 4 : place + 8]
        if name in _METADATA:
            size = _size(name, content[place + 8 : end - 4]) if room > 0 else None
            fits = size is not None and size <= room
            room -= MAX_CHUNK_BYTES if size is None else size
            if not fits:
                kept.append(content[start:place])
                start = end
        place = end
    return b"".join([*kept, content[start:]]) if start else content


def _size(name: bytes, data: bytes) -> int | None:
    """Returns the decompressed size of a text or profile; None where it exceeds MAX_CHUNK_BYTES."""
    packed = b""
    if name in (b"iCCP", b"zTXt"):
        packed = data.partition(b"\0")[2][1:]
    elif name == b"iTXt":
        rest = data.partition(b"\0")[2]  # a flag, a method, two zero-terminated texts, and the text, maybe compressed
        packed = rest[2:].split(b"\0", 2)[-1] if rest[:1] == b"\1" else b""
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(packed, MAX_CHUNK_BYTES)
    except zlib.error:  # Pillow reads it as empty
        return len(data)
    return None if unpacker.unconsumed_tail else max(len(data), len(unpacked))
