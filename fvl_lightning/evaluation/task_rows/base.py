"""Interface of the files with the rows of a task: the rows without their images, and the images, read when needed."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Images = Sequence[bytes | None]
"""The encoded images in a field of a row; None for a place that is empty, such as a null in a column of images."""


@dataclass(frozen=True)
class TaskRow:
    """A row of a task's files.

    Attributes:
        number: its number in all files together, from 0 on.
        where: the file and the row in it, for messages.
        values: its fields, without encoded images.
    """

    number: int
    where: str
    values: Mapping[str, Any]


class TaskRows(ABC):
    """The rows of a task's files, in an order that depends only on the names of the files."""

    where: str
    """The files, for messages."""
    fields: Sequence[str]
    """Names of the fields that the rows have, encoded images included."""
    image_fields: frozenset[str] = frozenset()
    """Those of `fields` that hold encoded images."""
    kind_field = ""
    """The field that groups questions where a task names none."""

    @abstractmethod
    def rows(self) -> Iterator[TaskRow]:
        """Yields all rows.

        Raises:
            DataError: a file is cut short or damaged, or cannot be read.
        """

    def read_together(self, row: TaskRow) -> range:
        """Returns the numbers of the rows whose images are best read together with those of one row."""
        return range(row.number, row.number + 1)

    @abstractmethod
    def images(self, rows: Sequence[TaskRow], fields: Sequence[str]) -> Iterator[Sequence[Images]]:
        """Yields the images of each of these rows, field by field; few are in memory at a time.

        Args:
            rows: some of the rows, in their order.
            fields: those of `image_fields` that are read.

        Raises:
            DataError: as of `rows`.
        """
