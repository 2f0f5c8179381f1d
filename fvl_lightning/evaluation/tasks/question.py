"""One question of a task, and the set that holds them with their images."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datamodules.encoding.messages import Message, with_sizes
from datamodules.images.tiling import Size, Tiling, upright_size
from fvl_lightning.core.errors import DataError
from fvl_lightning.evaluation.metrics.base import Reference

ONE_KIND = "all"
"""The kind of the questions of a task that names no kinds."""


@dataclass(frozen=True)
class TaskQuestion:
    """One question of a task."""

    id: str
    """Identifies the question; unique within its task."""
    messages: tuple[Message, ...]
    """The prompt, with a part {"type": "image"} for each of `images`, in their order."""
    images: tuple[int, ...]
    """Numbers of the images in the question set; equal images have equal numbers."""
    reference: Reference
    kind: str = ONE_KIND
    cluster: str = ""
    """Questions of one cluster are drawn together when intervals are computed."""
    slices: Mapping[str, str] = field(default_factory=dict)
    """{field: value} by which scores are reported, too."""


class QuestionSet(ABC):
    """The questions of a task, and their images, which are read when they are needed."""

    questions: Sequence[TaskQuestion]

    @abstractmethod
    def image(self, number: int) -> bytes:
        """Returns an encoded image; DataError where it cannot be read."""

    def where(self, number: int) -> str:
        """Returns the file and the row that an image is from, for messages."""
        return f"image {number}"

    @property
    @abstractmethod
    def identity(self) -> str:
        """A hash of the questions, references and images; equal sets have equal ones on every machine."""

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """Returns the fields of each question's row that can be written as JSON, for files of samples."""
        return [question.reference.row for question in self.questions]


class ImageSizes:
    """The sizes of the images of a question set, each read once from its header, where images become tiles.

    Args:
        questions: the set.
        tiling: the rule of a model; None where an image has one tile, and no size is read.
    """

    def __init__(self, questions: QuestionSet, tiling: Tiling | None) -> None:
        self._questions, self._tiling = questions, tiling
        self._sizes: dict[int, Size] = {}

    def apply(self, messages: Sequence[Message], images: Sequence[int]) -> tuple[Sequence[Message], tuple[int, ...]]:
        """Returns messages with the sizes of their images, and the tiles of each; none if an image has one tile.

        Raises:
            DataError: an image cannot be read.
        """
        if self._tiling is None:
            return messages, ()
        sizes = [self._size(number) for number in images]
        return with_sizes(messages, sizes), tuple(self._tiling.grid(size).tiles for size in sizes)

    def _size(self, number: int) -> Size:
        if number not in self._sizes:
            try:
                self._sizes[number] = upright_size(self._questions.image(number))
            except DataError as error:
                raise DataError(f"{self._questions.where(number)}: its image: {error}") from None
        return self._sizes[number]
