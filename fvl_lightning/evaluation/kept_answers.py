"""Answers of finished batches, kept in files until their scores are written: a scoring that was killed goes on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fvl_lightning.core.jsonl import append_rows, read_valid_rows

NAME = "answers-{rank}.jsonl"


class KeptAnswers:
    """The answers that the ranks have generated, in one file per rank.

    Args:
        folder: the folder of the files, the same for all ranks.
        model: the hash of the model that answers; answers of another one are not read.
        rank: the rank of this process.
    """

    def __init__(self, folder: Path, model: str, rank: int = 0) -> None:
        self._folder, self._model = folder, model
        self._file = folder / NAME.format(rank=rank)

    def read(self, identity: str, sizes: Sequence[int]) -> dict[int, list[str]]:
        """Returns {number of a batch: its answers} of everything that any rank has kept under `identity`.

        Args:
            identity: as in `add`.
            sizes: the number of questions of each batch.
        """
        rows = [
            row
            for file in sorted(self._folder.glob(NAME.format(rank="*")))
            for row in read_valid_rows(file, _is_valid)
            if (row["model"], row["of"]) == (self._model, identity)
        ]
        wanted = dict(enumerate(sizes))
        return {row["batch"]: row["texts"] for row in rows if wanted.get(row["batch"]) == len(row["texts"])}

    def add(self, identity: str, batch: int, texts: list[str]) -> None:
        """Keeps the answers of a batch.

        Args:
            identity: names the questions, their images and batches, and the precision.
            batch: the number of the batch.
            texts: its answers.

        Raises:
            OSError: they cannot be written.
        """
        append_rows(self._file, [{"model": self._model, "of": identity, "batch": batch, "texts": texts}])


def remove_kept(folder: Path) -> None:
    """Removes the files of all ranks from a folder."""
    for file in folder.glob(NAME.format(rank="*")):
        file.unlink(missing_ok=True)


def _is_valid(row: dict[str, Any]) -> bool:
    texts, batch = row.get("texts"), row.get("batch")
    return (
        isinstance(row.get("model"), str)
        and isinstance(row.get("of"), str)
        and isinstance(batch, int)
        and isinstance(texts, list)
        and all(isinstance(text, str) for text in texts)
    )
