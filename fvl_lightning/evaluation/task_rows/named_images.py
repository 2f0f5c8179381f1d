"""Images that rows name: by file in a folder, or by id in Parquet files of their own."""

from abc import ABC, abstractmethod

from datamodules.hub.address import HubAddress, is_hub
from datamodules.hub.files import parquet_files
from datamodules.sources.image_files import find_folder, read_images
from datamodules.sources.parquet_files import Place
from datamodules.sources.refusals import Refused
from datamodules.sources.row_files import find_files
from fvl_lightning.core.errors import ConfigError, DataError, nearest
from fvl_lightning.evaluation.task_rows.base import TaskRow
from fvl_lightning.evaluation.task_rows.parquet import ParquetRows

PARQUET = ".parquet"
_ID, _IMAGE = "id", "image"


class NamedImages(ABC):
    """Looks up images by the names in the rows."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Returns an encoded image; DataError if it is missing or cannot be read."""


class FolderImages(NamedImages):
    """The files of a folder; nothing outside of it is read.

    Raises:
        DataError: there is no such folder.
    """

    def __init__(self, folder: str) -> None:
        self._folder = find_folder(folder)

    def read(self, name: str) -> bytes:
        """Returns a file's content; see NamedImages."""
        try:
            return read_images(self._folder, [name])[0]
        except Refused as refused:
            raise DataError(f"{refused.refusal.reason} ({refused.refusal.detail}) in {self._folder}") from None


class TableImages(NamedImages):
    """The rows of Parquet files with the columns id and image.

    Raises:
        DataError: a file cannot be read.
        ConfigError: it has no such columns.
    """

    def __init__(self, places: list[Place]) -> None:
        self._rows = ParquetRows(places, (_ID,))
        if _ID not in self._rows.fields or _IMAGE not in self._rows.image_fields:
            there = ", ".join(self._rows.fields)
            raise ConfigError(f"data.images: {self._rows.where} needs the columns id and image, found {there}")
        self._by_id: dict[str, TaskRow] = {}
        for row in self._rows.rows():
            name = str(row.values[_ID])
            if name in self._by_id:
                raise DataError(f"{row.where}: the id '{name}' is that of {self._by_id[name].where}, too")
            self._by_id[name] = row

    def read(self, name: str) -> bytes:
        """Returns the image of an id; see NamedImages."""
        if name not in self._by_id:
            close = nearest(name, self._by_id)
            hint = f"; did you mean '{close}'?" if close else ""
            raise DataError(f"no image '{name}' in {self._rows.where}{hint}")
        ((found, *_),) = next(self._rows.images([self._by_id[name]], [_IMAGE]))
        if found is None:
            raise DataError(f"the image '{name}' in {self._rows.where} is empty")
        return found


def open_named_images(images: str) -> NamedImages | None:
    """Returns the images of `data.images`; None where it is empty."""
    if not images:
        return None
    if is_hub(images):
        return TableImages(list(parquet_files(HubAddress.parse(images))))
    return TableImages(list(find_files(images, (PARQUET,)))) if images.endswith(PARQUET) else FolderImages(images)
