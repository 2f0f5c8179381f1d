"""Rows of JSON files: JSON Lines, or lists."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from datamodules.sources.base import Refusal
from datamodules.sources.json_rows import check_json, json_chunks, json_rows
from fvl_lightning.core.errors import DataError
from fvl_lightning.evaluation.task_rows.base import Images, TaskRow, TaskRows


class JsonRows(TaskRows):
    """Rows of JSON files, which name their images.

    Raises:
        DataError: a file cannot be read, or is cut short.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.where = str(files[0]) + (f" and {len(files) - 1} more files" if len(files) > 1 else "")
        self._rows = list(self._read(files))
        self.fields = list(dict.fromkeys(name for row in self._rows for name in row.values))

    def rows(self) -> Iterator[TaskRow]:
        """Yields all rows; see TaskRows."""
        return iter(self._rows)

    def images(self, rows: Sequence[TaskRow], fields: Sequence[str]) -> Iterator[Sequence[Images]]:
        """Yields no images for each row, since JSON holds none."""
        return iter([()] * len(rows))

    def _read(self, files: Sequence[Path]) -> Iterator[TaskRow]:
        number = 0
        for file in files:
            check_json(file)
            for where, row in (found for chunk in json_chunks(file) for found in json_rows(chunk)):
                if isinstance(row, Refusal):
                    raise DataError(f"{where}: {row.reason} ({row.detail})")
                yield TaskRow(number, where, row)
                number += 1
