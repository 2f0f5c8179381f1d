"""One question of a task, and the set that holds them with their images."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datamodules.encoding.messages import Message
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
