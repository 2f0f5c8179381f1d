"""Interface of a source format: its rows, in chunks that any process can read on its own."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self


@dataclass(frozen=True)
class Row:
    """One row of a source.

    Attributes:
        record: has `messages` or `caption` (datamodules/README.md).
        images: its encoded images.
        where: the file and the row in it, for messages; rows are compared without it.
        unused: names of the non-empty fields that are not in `record`; they are counted by name.
    """

    record: dict[str, Any]
    images: tuple[bytes, ...] = ()
    where: str = field(default="", compare=False)
    unused: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Refusal:
    """A row that cannot become a sample.

    Attributes:
        reason: a short category to count by.
        detail: what is wrong with the row.
        where: the file and the row in it, for messages.
        id: the row's own id, for messages.
        rows: number of lost rows, where it is known to be more than one.
    """

    reason: str
    detail: str = ""
    where: str = field(default="", compare=False)
    id: str | int | None = field(default=None, compare=False)
    rows: int = 1


@dataclass(frozen=True)
class Ignored:
    """Ignored contents of a file (no image or text): their kind, to count by, and their number.

    A source yields it after the rows of a chunk, since what comes before a row changes the row's number.
    """

    kind: str
    count: int


@dataclass(frozen=True)
class Inputs:
    """The files that the rows of a source come from, by which a finished build notices that they have changed.

    Attributes:
        files: files whose content counts, such as the JSON of the rows.
        images: the folder of the images that rows name; None where rows hold them.
        links: the folders that links in `images` may lead into.
        commits: {address of a dataset on the hub: the commit that it has now}.
    """

    files: tuple[Path, ...] = ()
    images: Path | None = None
    links: tuple[str, ...] = ()
    commits: Mapping[str, str] = field(default_factory=dict)


class Source(ABC):
    """A source format. Its rows and their order depend only on its files, so a build can be repeated and resumed."""

    Config: ClassVar[type[Any]]

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def chunks(self) -> Iterator[Any]:
        """Yields small picklable values, each identifying some consecutive rows; always the same ones.

        A Refusal among them stands for a file that cannot be read, while others can, and an Ignored for content that
        is not read.

        Raises:
            DataError: a file is missing, or no file has this format.
        """

    def inputs(self) -> Inputs:
        """Returns the files that the rows come from; by default none, so that a changed source is not noticed.

        Raises:
            DataError: as of `chunks`.
        """
        return Inputs()

    @property
    def remote(self) -> bool:
        """True if the rows are read over the network. Chunks are then found during the reading, not before it."""
        return False

    def pinned(self, commits: Mapping[str, str]) -> Self:
        """Returns the source at these commits (see Inputs), whatever is newer; by default itself."""
        return self

    @abstractmethod
    def rows(self, chunk: Any) -> Iterator[Row | Refusal | Ignored]:
        """Yields the rows of one chunk, in order; a broken row is a Refusal, never an exception.

        All contents of the chunk are in a row, in a Refusal, or counted by an Ignored.
        """
