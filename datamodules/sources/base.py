"""What the builder of shards needs of a format: its rows, in chunks that any process can read on its own."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Row:
    """One row as found: `record` with `messages` or `caption` (datamodules/README.md), and its encoded images."""

    record: dict[str, Any]
    images: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Refusal:
    """A row that can't become a sample: `reason` is a short category to count by, `detail` what was wrong with it."""

    reason: str
    detail: str = ""


class Source(ABC):
    """One format. Its rows and their order depend on the files alone, so that a build can be repeated and resumed."""

    Config: ClassVar[type[Any]]

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def chunks(self) -> Iterator[Any]:
        """Small picklable values, each naming some consecutive rows; the same ones every time.

        Raises:
            DataError: a file that is missing or is not of this format at all.
        """

    @abstractmethod
    def rows(self, chunk: Any) -> Iterator[Row | Refusal]:
        """The rows of one chunk, in order; a row that is broken is a Refusal, never an exception."""
