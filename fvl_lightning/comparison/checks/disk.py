"""Checks that the disk has room for the checkpoints and models of all cells."""

from collections.abc import Sequence
from pathlib import Path

from fvl_lightning.core.errors import DataError
from fvl_lightning.core.terminal import bytes_in_words, plural
from fvl_lightning.doctor.resources import bytes_left_by_run, bytes_while_training, free_space
from fvl_lightning.stages.base import Stage

Work = Sequence[tuple[int, Sequence[Stage]]]
"""(bytes that are on the disk already, the stages on the meta device) of every cell or encoder to train."""


def check_disk(folder: Path, work: Work, jobs: int) -> str:
    """Checks that checkpoints and models of all trainings fit on the disk.

    Args:
        folder: the folder of the comparison.
        work: what will be trained.
        jobs: how many trainings run at the same time.

    Returns:
        The estimate and the free space.

    Raises:
        DataError: the disk has not enough room, or cannot be written to.
    """
    there, free = free_space(folder)
    left = sum(max(0, sum(map(bytes_left_by_run, stages)) - present) for present, stages in work)
    growth = sorted((max(map(bytes_while_training, stages)) for _, stages in work), reverse=True)
    needed = left + sum(growth[:jobs])
    message = (
        f"checkpoints and models of {plural(len(work), 'cell')} take about {bytes_in_words(needed)}, "
        f"{bytes_in_words(free)} are free in {there}"
    )
    if free < needed:
        raise DataError(f"{message}; make room, name another `output`, or compare fewer arms or seeds")
    return message


def bytes_in(folder: Path) -> int:
    """Returns the bytes of all files below a folder; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0

