"""What the builder of shards needs of a format: its rows, in chunks that any process can read on its own."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True)
class Row:
    """One row as found: `record` with `messages` or `caption` (datamodules/README.md), and its encoded images.

    `where` is the file and the row in it, for who looks for it; it is no part of what the row is. `unused` names the
    fields that hold something which is not in `record`; they are counted by name.
    """

    record: dict[str, Any]
    images: tuple[bytes, ...] = ()
    where: str = field(default="", compare=False)
    unused: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Refusal:
    """A row that can't become a sample: `reason` is a short category to count by, `detail` what was wrong with it.

    `where` is the file and the row in it, `id` the row's own, for who looks for it; neither says what is wrong. `rows`
    is how many rows are lost, where that is known to be more than one.
    """

    reason: str
    detail: str = ""
    where: str = field(default="", compare=False)
    id: str | int | None = field(default=None, compare=False)
    rows: int = 1


@dataclass(frozen=True)
class PassedOver:
    """Parts of a file that say nothing to training: what kind they are, to count by, and how many.

    A source yields it behind the rows of a chunk, since rows are numbered by what comes before them.
    """

    kind: str
    count: int


class Source(ABC):
    """One format. Its rows and their order depend on the files alone, so that a build can be repeated and resumed."""

    Config: ClassVar[type[Any]]

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def chunks(self) -> Iterator[Any]:
        """Small picklable values, each naming some consecutive rows; the same ones every time.

        A Refusal among them stands for a file that can't be read, beside others that can.

        Raises:
            DataError: a file that is missing, or none that is of this format.
        """

    @abstractmethod
    def rows(self, chunk: Any) -> Iterator[Row | Refusal | PassedOver]:
        """The rows of one chunk, in order; a row that is broken is a Refusal, never an exception.

        Every part of the chunk is in a row, in a Refusal, or counted by a PassedOver.
        """
