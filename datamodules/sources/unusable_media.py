"""Finds media in fields that no source reads, so that a row is not trained on as if it had no image."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from datamodules.sources.refusals import Refused

FIELDS = ("video", "videos", "video_path", "video_paths", "video_file", "audio", "audios", "audio_path", "audio_file")
"""Common field names for media that the kit cannot use."""

_SOUND_OR_VIDEO = r"mp4|avi|mov|mkv|webm|m4v|mpg|mpeg|flv|wmv|wav|mp3|flac|ogg|opus|m4a|aac"
_PICTURE = r"png|jpe?g|webp|gif|bmp|tiff?|avif|heic|jfif"
_FILE = re.compile(rf"[^\n]{{0,1000}}\.(?:(?P<unusable>{_SOUND_OR_VIDEO})|{_PICTURE})", re.IGNORECASE)
_PARTS = ("path", "bytes", "url", "image", "image_url")


def check_media(row: Mapping[Any, Any], has_images: bool, used: Collection[str] = ()) -> None:
    """Refuses a row with media that are not read.

    Args:
        row: the row.
        has_images: whether images of the row are read; then only video and audio are refused.
        used: fields that are read and not checked.

    Raises:
        Refused: "unused media", with the name of the field.
    """
    for name, value in row.items():
        if name in used:
            continue
        file = _file(value)
        if (name in FIELDS and _holds(value)) or (file and file["unusable"]):
            raise Refused("unused media", f"field '{name}' holds video or audio, which cannot be used")
        if file and not has_images:
            raise Refused("unused media", f"field '{name}' names {file[0][:200]!r}, but the row has no image to read")
        if not has_images and not isinstance(value, str) and _has_bytes(value):
            raise Refused("unused media", f"field '{name}' holds bytes, but the row has no image to read")


def _file(value: Any) -> re.Match[str] | None:
    """Returns the first file name of an image, a video or a sound in a value."""
    if isinstance(value, str):
        return _FILE.fullmatch(value.strip())
    inner = value if isinstance(value, list) else [value.get(key) for key in _PARTS] if isinstance(value, dict) else []
    return next((file for one in inner if one is not value and (file := _file(one))), None)


def _has_bytes(value: Any) -> bool:
    inner = value if isinstance(value, list) else [value.get("bytes") if isinstance(value, dict) else value]
    return any(
        isinstance(one, bytes) or (isinstance(one, dict) and isinstance(one.get("bytes"), bytes)) for one in inner
    )


def _holds(value: Any) -> bool:
    """Returns whether a field with the name of media holds media, rather than a flag or a number."""
    if isinstance(value, dict):
        return any(_holds(one) for one in value.values())
    if isinstance(value, list):
        return any(_holds(one) for one in value)
    return isinstance(value, str | bytes) and bool(value) and value not in ("None", "none", "nan", "null")
