"""Reads requests: the rows of a JSON Lines file, or one prompt for every image of a folder."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.encoding.messages import Message, check_messages, image_parts, parts_of
from datamodules.images.decoding import EXTENSIONS, refuse_many_pixels
from datamodules.images.limits import refuse_many_images
from datamodules.images.tile_reader import TileReader
from datamodules.sources.image_files import find_folder, read_images
from datamodules.sources.refusals import Refused
from datamodules.sources.row_files import MAX_ROW_BYTES, open_file
from fvl_lightning.core.errors import DataError
from fvl_lightning.inference.generation import user_message

IMAGE_SUFFIXES = tuple(f".{extension}" for extension in EXTENSIONS)
"""Suffixes of the image files in a folder."""
REQUEST_KEYS = ("image", "images", "prompt", "messages")


@dataclass(frozen=True)
class Request:
    """A prompt or conversation with image files that are not read yet.

    Attributes:
        place: where it was written, such as "line 3".
        fields: id, images and, in a valid request, prompt or messages; its answer repeats them.
        folder: the folder of its images.
        problem: why the request is invalid, empty for a valid one.
    """

    place: str
    fields: dict[str, Any]
    folder: Path
    problem: str = ""

    def messages(self, reader: TileReader) -> list[Message]:
        """Returns the conversation with decoded images; DataError for an invalid request or an unreadable image."""
        if self.problem:
            raise DataError(self.problem)
        try:
            contents = read_images(self.folder, self.fields["images"])
        except Refused as refused:
            raise DataError(f"{refused.refusal.reason}: {refused.refusal.detail}") from None
        refuse_many_images(len(contents))
        refuse_many_pixels(contents)
        files = zip(self.fields["images"], contents, strict=True)
        pictures = iter([_decode(name, content, reader) for name, content in files])
        if "prompt" in self.fields:
            return [user_message(list(pictures), self.fields["prompt"])]
        return [
            {
                "role": message["role"],
                "content": [
                    {"type": "image", "image": next(pictures)} if part["type"] == "image" else part
                    for part in parts_of(message)
                ],
            }
            for message in self.fields["messages"]
        ]

    def contents(self) -> list[bytes]:
        """Returns its encoded images; none for an invalid request, or where one of them cannot be read."""
        try:
            return [] if self.problem else list(read_images(self.folder, self.fields["images"]))
        except Refused:
            return []


@dataclass(frozen=True)
class Requests:
    """`count` requests, a hash over all of them, and a function that reads them from the start."""

    count: int
    digest: str
    read: Callable[[], Iterator[Request]]


def folder_requests(folder: Path, prompt: str) -> Requests:
    """Returns one request per image directly in `folder`, sorted by name; DataError where there is none."""
    paths = sorted(path for path in find_folder(str(folder)).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise DataError(f"no picture in {folder}: none of its files ends with {', '.join(IMAGE_SUFFIXES)}")
    names = [path.name for path in paths]

    def read() -> Iterator[Request]:
        for number, name in enumerate(names, 1):
            yield Request(f"picture {number}", {"id": name, "images": [name], "prompt": prompt}, folder)

    return Requests(len(names), _digest(read()), read)


def file_requests(path: Path) -> Requests:
    """Reads the rows of a JSON Lines file: "image" or "images" (relative to the file), and "prompt" or "messages".

    The image parts of `messages` are the row's images in order. A row without "id" gets the number of its line. An
    invalid row becomes a request with a `problem`.

    Raises:
        DataError: a file that cannot be read.
    """
    count = sum(bool(line.strip()) for _, line in _lines(path))

    def read() -> Iterator[Request]:
        for number, line in _lines(path):
            if line.strip():
                yield _request(number, line, path.parent)

    return Requests(count, _digest(read()), read)


def _digest(requests: Iterable[Request]) -> str:
    """Hashes the requests with the bytes of their images, since another image may have the same name."""
    digest = hashlib.sha256()
    for request in requests:
        digest.update(json.dumps([request.fields, request.problem]).encode())
        for content in request.contents():
            digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:16]


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields every line with its number from 1 on; only the beginning of a line that is too long."""
    with open_file(path) as file:
        number = 0
        while line := file.readline(MAX_ROW_BYTES + 1):
            number += 1
            yield number, line
            while len(line) > MAX_ROW_BYTES and not line.endswith(b"\n"):
                line = file.readline(MAX_ROW_BYTES + 1)


def _request(number: int, line: bytes, folder: Path) -> Request:
    place, fields = f"line {number}", {"id": number, "images": []}
    if len(line) > MAX_ROW_BYTES:
        return Request(place, fields, folder, f"the row is longer than the limit of {MAX_ROW_BYTES} bytes")
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return Request(place, fields, folder, f"no valid JSON: {error}")
    if not isinstance(row, dict):
        return Request(place, fields, folder, f"expected an object, found {type(row).__name__}")
    if isinstance(row.get("id"), str | int):
        fields["id"] = row["id"]
    problem = _problem(row)
    if not problem:
        fields["images"] = _names(row)
        fields |= {key: row[key] for key in ("prompt", "messages") if key in row}
    return Request(place, fields, folder, problem)


def _names(row: dict[str, Any]) -> Any:
    return [row["image"]] if "image" in row else row.get("images", [])


def _problem(row: dict[str, Any]) -> str:
    """Returns why a row is invalid, empty for a valid one."""
    names = _names(row)
    if ("image" in row and "images" in row) or ("prompt" in row) == ("messages" in row):
        found = ", ".join(key for key in REQUEST_KEYS if key in row) or "none of them"
        return f"expected prompt or messages, and image or images, found {found}"
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        return f"images are names of files, found {names!r}"[:200]
    if "prompt" in row:
        return "" if isinstance(row["prompt"], str) else f"prompt is a text, found {type(row['prompt']).__name__}"
    messages = row["messages"]
    if wrong := check_messages(messages):
        return wrong
    if messages[-1]["role"] != "user":
        return f"the last message has role {messages[-1]['role']}, expected user"
    parts = image_parts(messages)
    return "" if parts == len(names) else f"the messages have {parts} image parts for {len(names)} images"


def _decode(name: str, content: bytes, reader: TileReader) -> Any:
    try:
        return reader.read(content)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
