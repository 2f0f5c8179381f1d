"""Checks that the disk has room for the checkpoints, models and cached features of a comparison."""

from collections.abc import Sequence
from pathlib import Path

from fvl_lightning.core.errors import DataError
from fvl_lightning.core.terminal import bytes_in_words, plural
from fvl_lightning.doctor.resources import bytes_left_by_run, bytes_while_training, free_space
from fvl_lightning.stages.base import Stage

Work = Sequence[tuple[int, Sequence[Stage]]]
"""(bytes that are on the disk already, the stages on the meta device) of every cell or encoder to train."""


def check_disk(folder: Path, work: Work, jobs: int, features: int = 0) -> str:
    """Checks that checkpoints, models and features of all trainings fit on the disk.

    Args:
        folder: the folder of the comparison.
        work: what will be trained.
        jobs: how many trainings run at the same time.
        features: bytes of cached features that are not there yet.

    Returns:
        The estimate and the free space.

    Raises:
        DataError: the disk has not enough room, or cannot be written to.
    """
    there, free = free_space(folder)
    needed = disk_needed(work, jobs) + features
    cached = f", {bytes_in_words(features)} of them cached features" if features else ""
    message = (
        f"checkpoints and models of {plural(len(work), 'cell')} take about {bytes_in_words(needed)}{cached}, "
        f"{bytes_in_words(free)} are free in {there}"
    )
    if free < needed:
        raise DataError(f"{message}; make room, name another `output`, or compare fewer arms or seeds")
    return message


def disk_needed(work: Work, jobs: int) -> int:
    """Returns the bytes that trainings add to the disk, including those that are removed at the end of a training."""
    left = sum(max(0, sum(map(bytes_left_by_run, stages)) - present) for present, stages in work)
    growth = sorted((max(map(bytes_while_training, stages)) for _, stages in work), reverse=True)
    return left + sum(growth[:jobs])


def bytes_in(folder: Path) -> int:
    """Returns the bytes of all files below a folder; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
