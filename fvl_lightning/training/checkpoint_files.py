"""Checkpoints on disk: written beside and renamed, the one before kept, and checked whole before they are loaded.

    last.ckpt       the newest
    previous.ckpt   the one before, for when the newest turns out to be damaged
    last.ckpt.tmp   one that is being written, or that a kill has left behind
"""

import logging
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from fvl_lightning.core.errors import DataError

logger = logging.getLogger(__name__)

LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"


class CheckpointFiles(TorchCheckpointIO):
    """Lightning's way to the disk. Its own goes through a copy in memory and one in /tmp, and is not atomic.

    A checkpoint that cannot be written is told by a warning and by `failure` rather than by an error: the other ranks
    wait for this one to come out of the saving, and a full disk may be emptied before the next checkpoint is due.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failure: str | None = None
        """Why the last save failed; None where it did not."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes `path`, once whole, and keeps what was there as previous.ckpt."""
        path = Path(path)
        beside = path.with_name(f"{path.name}.tmp")
        self.failure = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with beside.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if path.exists():
                os.replace(path, path.with_name(PREVIOUS))
            os.replace(beside, path)
        except (OSError, RuntimeError) as error:
            # torch ends a zip file even if it could not write it, and says of that what it should say of the disk.
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            beside.unlink(missing_ok=True)
            free = shutil.disk_usage(path.parent).free
            self.failure = f"{path} could not be written ({cause.strerror}; {free:,} bytes free in {path.parent})"


def present_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, the newest first, whole or not."""
    return [folder / name for name in (LAST, PREVIOUS) if (folder / name).is_file()]


def whole_checkpoint(folder: Path) -> Path:
    """The newest checkpoint in `folder` that is whole, with a warning where it is not the newest.

    Raises:
        DataError: none is.
    """
    present = present_checkpoints(folder)
    whole = next(filter(is_whole, present), None)
    if whole is None:
        named = " and ".join(map(str, present)) or str(folder / LAST)
        raise DataError(f"--resume: {named}: no whole checkpoint; start a new run")
    if whole != present[0]:
        logger.warning("%s is damaged; the run goes on from the checkpoint before it, %s", present[0], whole)
    return whole


def is_whole(path: Path) -> bool:
    """Whether every byte is what was written, by the checksums that torch writes and does not read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError):  # what zipfile makes of stray bytes
        return False
