"""Many questions from outside: the rows of a JSON Lines file, or one question about every picture of a folder."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.encoding.messages import Message, check_messages, image_parts, parts_of
from datamodules.images.decoding import EXTENSIONS
from datamodules.images.transforms import ImageReader
from datamodules.sources.files import MAX_ROW_BYTES, find_folder, open_file, read_images
from datamodules.sources.refusals import Refused
from fvl_lightning.core.errors import DataError
from fvl_lightning.inference.generation import user_message

SUFFIXES = tuple(f".{extension}" for extension in EXTENSIONS)
"""What is a picture in a folder."""
HELD = ("image", "images", "prompt", "messages")


@dataclass(frozen=True)
class Request:
    """A question about pictures, not read yet.

    Attributes:
        place: where it stands, such as "line 3".
        told: what its answer repeats of it: id, images and, where it is whole, prompt or messages.
        folder: of its pictures.
        problem: what is wrong with it, empty where nothing is.
    """

    place: str
    told: dict[str, Any]
    folder: Path
    problem: str = ""

    def messages(self, reader: ImageReader) -> list[Message]:
        """The conversation with its pictures decoded; DataError for a row or a picture that cannot be read."""
        if self.problem:
            raise DataError(self.problem)
        try:
            contents = read_images(self.folder, self.told["images"])
        except Refused as refused:
            raise DataError(f"{refused.refusal.reason}: {refused.refusal.detail}") from None
        named = zip(self.told["images"], contents, strict=True)
        pictures = iter([_picture(name, content, reader) for name, content in named])
        if "prompt" in self.told:
            return [user_message(list(pictures), self.told["prompt"])]
        return [
            {
                "role": message["role"],
                "content": [
                    {"type": "image", "image": next(pictures)} if part["type"] == "image" else part
                    for part in parts_of(message)
                ],
            }
            for message in self.told["messages"]
        ]


    def contents(self) -> list[bytes]:
        """Its encoded pictures; none where it is wrong, or one of them cannot be read."""
        try:
            return [] if self.problem else list(read_images(self.folder, self.told["images"]))
        except Refused:
            return []


@dataclass(frozen=True)
class Requests:
    """`count` requests, the hash that names them all, and a way to read them from the start."""

    count: int
    digest: str
    read: Callable[[], Iterator[Request]]


def folder_requests(folder: Path, prompt: str) -> Requests:
    """The question `prompt` about each picture directly in `folder`, by name; DataError where there is none."""
    found = sorted(path for path in find_folder(str(folder)).iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise DataError(f"no picture in {folder}: none of its files ends with {', '.join(SUFFIXES)}")
    names = [path.name for path in found]

    def read() -> Iterator[Request]:
        for number, name in enumerate(names, 1):
            yield Request(f"picture {number}", {"id": name, "images": [name], "prompt": prompt}, folder)

    return Requests(len(names), _digest(read()), read)


def file_requests(path: Path) -> Requests:
    """The rows of a JSON Lines file: "image" or "images" (relative to the file), and "prompt" or "messages".

    The image parts of `messages` are the row's images in their order. A row without "id" is known by its line. What is
    wrong with a row is in the row. Raises DataError for a file that can't be read.
    """
    count = sum(bool(line.strip()) for _, line in _lines(path))

    def read() -> Iterator[Request]:
        for number, line in _lines(path):
            if line.strip():
                yield _request(number, line, path.parent)

    return Requests(count, _digest(read()), read)


def _digest(requests: Iterable[Request]) -> str:
    """Names what is asked, the bytes of the pictures included: another picture under the same name is another one."""
    digest = hashlib.sha256()
    for request in requests:
        digest.update(json.dumps([request.told, request.problem]).encode())
        for content in request.contents():
            digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:16]


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Every line with its number from 1 on; of one that is too long only the beginning."""
    with open_file(path) as file:
        number = 0
        while line := file.readline(MAX_ROW_BYTES + 1):
            number += 1
            yield number, line
            while len(line) > MAX_ROW_BYTES and not line.endswith(b"\n"):
                line = file.readline(MAX_ROW_BYTES + 1)


def _request(number: int, line: bytes, folder: Path) -> Request:
    place, told = f"line {number}", {"id": number, "images": []}
    if len(line) > MAX_ROW_BYTES:
        return Request(place, told, folder, f"a row of more than {MAX_ROW_BYTES} bytes, no longer one is read")
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return Request(place, told, folder, f"no valid JSON: {error}")
    if not isinstance(row, dict):
        return Request(place, told, folder, f"expected an object, found {type(row).__name__}")
    if isinstance(row.get("id"), str | int):
        told["id"] = row["id"]
    problem = _problem(row)
    if not problem:
        told["images"] = _names(row)
        told |= {key: row[key] for key in ("prompt", "messages") if key in row}
    return Request(place, told, folder, problem)


def _names(row: dict[str, Any]) -> Any:
    return [row["image"]] if "image" in row else row.get("images", [])


def _problem(row: dict[str, Any]) -> str:
    """What is wrong with a row, empty where nothing is."""
    names = _names(row)
    if ("image" in row and "images" in row) or ("prompt" in row) == ("messages" in row):
        found = ", ".join(key for key in HELD if key in row) or "none of them"
        return f"expected prompt or messages, and image or images, found {found}"
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        return f"images are names of files, found {names!r}"[:200]
    if "prompt" in row:
        return "" if isinstance(row["prompt"], str) else f"prompt is a text, found {type(row['prompt']).__name__}"
    messages = row["messages"]
    if wrong := check_messages(messages):
        return wrong
    if messages[-1]["role"] != "user":
        return f"the last message is of {messages[-1]['role']}, expected one of user to answer to"
    parts = image_parts(messages)
    return "" if parts == len(names) else f"the messages have {parts} image parts for {len(names)} images"


def _picture(name: str, content: bytes, reader: ImageReader) -> Any:
    try:
        return reader.decode(content)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
