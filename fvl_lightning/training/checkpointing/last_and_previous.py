"""Checkpoints on disk: written to a temporary path and renamed, the previous kept, checked before loading.

last.ckpt       the newest: a file, or a folder of parts (sharded.py)
previous.ckpt   the one before, for when the newest turns out to be damaged
best.ckpt       the weights of the lowest validation loss, where they are kept
*.tmp           one that is being written, or that a kill has left behind
"""

import logging
import shutil
from collections.abc import Callable, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import distributed

from fvl_lightning.core.atomic import durable_file, rename_into_place
from fvl_lightning.core.errors import DataError
from fvl_lightning.training.checkpointing.checksum import is_whole_file, read_file, write_with_checksum
from fvl_lightning.training.checkpointing.sharded import (
    Manifest,
    Parts,
    copied,
    is_whole_folder,
    made_whole,
    read_folder,
    write_manifest,
    write_parts,
)

logger = logging.getLogger(__name__)

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
RUN_HASH = "run_hash"
"""The key that names the run of a checkpoint; earlier versions wrote none."""
WEIGHT_KEYS = frozenset({"state_dict", "frozen_hash", "validation_loss"})
"""The keys that best.ckpt has at least."""
TRAINING_KEYS = WEIGHT_KEYS | {
    "epoch", "global_step", "loops", "optimizer_states", "lr_schedulers", "position", "samples", "skipped_in_a_row",
    "recent_updates", "random_states", "threads",
}  # fmt: skip
"""The keys that a checkpoint to resume from has at least."""


class CheckpointFiles(TorchCheckpointIO):
    """CheckpointIO for Lightning with atomic writes; the built-in one copies in memory and to /tmp, and is not atomic.

    A checkpoint that cannot be written causes a warning and sets `failure`, but raises no error: the other ranks wait
    for this one to return from the save, and a full disk may have room again when the next checkpoint is due.
    """

    def __init__(self, background: bool = False) -> None:
        super().__init__()
        self.background = background
        """Whether a save returns when its values are copied, and is written while training goes on."""
        self.failure: str | None = None
        """Reason for the failure of the last save; None if it succeeded."""
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[Any] | None = None
        self._parts_of: Path | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes `path` atomically, and keeps the earlier checkpoint as previous.ckpt."""
        self.save_whole(copied(checkpoint) if self.background else checkpoint, Path(path))

    def save_whole(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Writes like `save_checkpoint` without a copy: nothing may change the checkpoint until it is written."""
        self._begin(lambda: _write_whole(checkpoint, path), path)

    def save_parts(self, common: dict[str, Any], parts: Parts, path: Path) -> None:
        """Writes this rank's part of the folder `path`; all ranks must call it, and `finish` if in background."""
        rank, tmp_path = distributed.get_rank(), _tmp_path(path)
        _, failure = _attempt(lambda: _make(tmp_path), path) if rank == 0 else (None, None)
        distributed.barrier()
        self._parts_of = path
        self._begin(lambda: write_parts(tmp_path, rank, common if rank == 0 else None, parts), path, failure)

    @property
    def written(self) -> bool:
        """Returns whether this rank has nothing left to write."""
        return self._writing is None or self._writing.done()

    def finish(self) -> None:
        """Waits for the save in progress and completes it; all ranks must call it for a sharded checkpoint."""
        if self._writing is None:
            return
        manifest, self.failure = self._writing.result()
        self._writing = None
        if self._parts_of is not None:
            path, self._parts_of = self._parts_of, None
            self.failure = _join(manifest, self.failure, path)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Returns a checkpoint in main memory; a sharded one is joined."""
        if Path(path).is_dir():
            return made_whole(read_folder(Path(path)))
        return super().load_checkpoint(path, map_location, weights_only)

    def _begin(self, write: Callable[[], Any], path: Path, failure: str | None = None) -> None:
        assert self._writing is None, "one save at a time"
        if self.background and failure is None:
            self._writing = self._writer.submit(_attempt, write, path)
            return
        self._writing = Future()
        self._writing.set_result(_attempt(write, path) if failure is None else (None, failure))
        if not self.background:
            self.finish()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Returns a checkpoint, whole or sharded, with memory-mapped values; sharded values are Rows."""
    return read_folder(path) if path.is_dir() else read_file(path)


def present_checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints in `folder`, complete or not, the newest first."""
    return [folder / name for name in (LAST, PREVIOUS) if (folder / name).exists()]


def whole_checkpoint(folder: Path, run_hash: str | None = None) -> Path:
    """Returns the newest checkpoint in `folder` to resume from; see `newest_checkpoint` for arguments and warnings.

    Raises:
        DataError: there is none.
    """
    if whole := newest_checkpoint(folder, run_hash):
        return whole
    problems = [f"{path} {problem_of(path, TRAINING_KEYS, run_hash)}" for path in present_checkpoints(folder)]
    raise DataError(f"--resume: {' and '.join(problems) or folder / LAST}: no whole checkpoint; start a new run")


def remove_unfinished(folder: Path) -> None:
    """Removes what a killed process was writing; for the process that trains the run."""
    for path in folder.glob("*.tmp"):
        _remove(path)


def newest_checkpoint(folder: Path, run_hash: str | None = None) -> Path | None:
    """Returns the newest checkpoint in `folder` to resume from, None if there is none.

    Where the newest one cannot be used, a warning names it and the one before, which is returned.

    Args:
        folder: the folder of the checkpoints.
        run_hash: the run that the checkpoint must be of; None for any.
    """
    return _first_usable(present_checkpoints(folder), TRAINING_KEYS, run_hash)


def best_checkpoint(folder: Path, run_hash: str | None = None) -> Path | None:
    """Returns the weights of the lowest validation loss; as `newest_checkpoint` for those of a resume."""
    present = [path for path in (folder / BEST, _aside(folder / BEST)) if path.exists()]
    return _first_usable(present, WEIGHT_KEYS, run_hash)


def problem_of(path: Path, keys: Set[str] = TRAINING_KEYS, run_hash: str | None = None) -> str | None:
    """Returns what is wrong with a checkpoint, as the end of a sentence; None where it can be used.

    Args:
        path: its file or folder.
        keys: the keys that it must have.
        run_hash: the run that it must be of; None for any.
    """
    if not is_whole(path):
        return "is damaged"
    try:
        checkpoint: Any = read_checkpoint(path)
    except Exception:  # a whole file of another kind; there is no list of what torch raises for it
        checkpoint = None
    if not isinstance(checkpoint, dict) or not keys <= checkpoint.keys():
        return "is no checkpoint of this kit"
    return "is of another run" if run_hash and checkpoint.get(RUN_HASH) not in (None, run_hash) else None


def is_whole(path: Path) -> bool:
    """Returns whether every byte is what was written; see is_whole_file for files of earlier versions."""
    return is_whole_folder(path) if path.is_dir() else is_whole_file(path)


def _first_usable(paths: Sequence[Path], keys: Set[str], run_hash: str | None) -> Path | None:
    problems: list[str] = []
    for path in paths:
        problem = problem_of(path, keys, run_hash)
        if problem is None:
            if problems:
                logger.warning("%s; the checkpoint before it is taken, %s", " and ".join(problems), path)
            return path
        problems.append(f"{path} {problem}")
    return None


def _write_whole(checkpoint: dict[str, Any], path: Path) -> None:
    tmp_path = _tmp_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove(tmp_path)
    with durable_file(tmp_path) as file:
        write_with_checksum(file, checkpoint)
    _put_in_place(path)


def _join(manifest: Manifest | None, failure: str | None, path: Path) -> str | None:
    """Completes the folder once all ranks have written their parts; returns the reason of a failure to all ranks."""
    outcomes: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(outcomes, (manifest, failure))
    failures = [reason for _, reason in outcomes if reason]
    outcome: list[str | None] = failures[:1] or [None]
    if distributed.get_rank() == 0:
        if not failures:
            files = {name: known for manifest, _ in outcomes for name, known in manifest.items()}
            _, outcome[0] = _attempt(lambda: _complete(path, files), path)
        if outcome[0]:
            shutil.rmtree(_tmp_path(path), ignore_errors=True)
    distributed.broadcast_object_list(outcome, 0)
    return outcome[0]


def _complete(path: Path, files: Manifest) -> None:
    write_manifest(_tmp_path(path), files)
    _put_in_place(path)


def _attempt(write: Callable[[], Any], path: Path) -> tuple[Any, str | None]:
    """Returns the result of `write`, or the reason of a disk error; other errors are raised."""
    try:
        return write(), None
    except (OSError, RuntimeError) as error:
        # torch ends a zip file even if it could not write it, and says of that what it should say of the disk.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        if _tmp_path(path).is_file():
            _remove(_tmp_path(path))
        free = shutil.disk_usage(path.parent).free
        return None, f"{path} could not be written ({cause.strerror}; {free:,} bytes free in {path.parent})"


def _put_in_place(path: Path) -> None:
    """Renames the temporary file; at any time, the new or the previous checkpoint exists and is complete."""
    before = _aside(path)
    if path.exists():
        _remove(before)
        rename_into_place(path, before)
    rename_into_place(_tmp_path(path), path)
    if path.name != LAST:
        _remove(before)


def _make(folder: Path) -> None:
    _remove(folder)
    folder.mkdir(parents=True)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _tmp_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp")


def _aside(path: Path) -> Path:
    """Returns the path that the earlier file is renamed to; only that of last.ckpt is kept."""
    return path.with_name(PREVIOUS if path.name == LAST else f"{path.name}.before")
