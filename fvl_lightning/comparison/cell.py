"""The cells of a comparison: an arm with one seed, its folder, its state and its result."""

import logging
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from fvl_lightning.comparison.result_files.cell import CellResult, CellSpec, Failure, TrialResult
from fvl_lightning.comparison.result_files.record import Record
from fvl_lightning.comparison.scoring.names import MACRO, TASKS
from fvl_lightning.core.config.fields import defaults_of, keys_that_change
from fvl_lightning.core.config.loading import check_config, config_hash
from fvl_lightning.core.errors import DataError, UserError, first_line
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.jsonl import read_sealed, write_sealed
from fvl_lightning.core.locks import is_held
from fvl_lightning.launchers.placement import without_placement
from fvl_lightning.launchers.resources import ResourcesConfig
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.identity import RunIdentity

CELL, RESULT = "cell.json", "result.json"
"""Files of a cell: its specification, and what it measured."""
LOCK = ".lock"
"""File in the folder of a cell that its process has locked."""
CELL_TAG = "fvl.cell"
"""The tag of a cell's MLflow runs that has its key."""
logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Record)

NOT_HASHED = ("parent_run_id", "tags", "fresh", "split", "resources", TASKS, MACRO)
"""Parts of a specification that do not change the result; another split is scored in another folder. What is asked of
tasks is hashed by itself."""
OF_TORCH = re.compile(r"(\[rank\d+\]:)?\s*\[[IWEF]\d{4} ")
"""Beginning of lines that torch's C++ code logs, such as about ranks that are gone; none is why a cell failed."""
WITHOUT_GPUS = ("cpu", "mps")
"""Values of trainer.accelerator for which no GPU is asked for."""


class CellProgress(NamedTuple):
    """Progress of a cell over all its stages."""

    activity: str
    """The stage that trains, or "starting" or "answering"."""
    step: int
    steps: int
    loss: float | None = None
    """The last training loss; None while nothing trains."""


@dataclass
class Cell:
    """An arm with one seed, in a folder of its own: cell.json, then cell.log, and result.json or failure.json."""

    arm: str
    seed: int
    folder: Path
    spec: CellSpec
    code: int | None = None
    """Exit code of this session's process, once it has ended."""
    started: tuple[float, int] | None = None
    """(monotonic clock, steps done) when this session's process was started."""
    key: str = field(init=False)
    """Names everything that makes the result. A cell of an earlier version keeps its key, so that it stays finished."""

    def __post_init__(self) -> None:
        self.key = config_hash(_hashed(self.spec))
        stored = {} if self.spec.fresh else self._read(CELL)
        earlier = stored.get("cell")
        if isinstance(earlier, str) and earlier != self.key and _is_same(stored, self.spec):
            self.key = earlier
        self.spec.tags = {**self.spec.tags, CELL_TAG: self.key}

    @property
    def name(self) -> str:
        """Name in messages."""
        return f"{self.arm} with seed {self.seed}"

    @property
    def resources(self) -> ResourcesConfig:
        """Devices, cores and memory of its processes."""
        return self.spec.resources

    @property
    def gpus(self) -> bool:
        """Returns whether its ranks compute on GPUs where there are any."""
        return any(stage["trainer"].get("accelerator", "cpu") not in WITHOUT_GPUS for stage in self.spec.stages)

    @property
    def command(self) -> list[str]:
        """Command line of each of its processes."""
        return [sys.executable, "-m", "fvl_lightning.comparison.worker", str(self.folder / CELL)]

    @property
    def log(self) -> Path:
        """Output of its process."""
        return self.folder / "cell.log"

    @property
    def finished(self) -> bool:
        """Returns whether there is a whole result of exactly this specification."""
        return is_finished(self.folder, self.key)

    @property
    def held(self) -> bool:
        """Returns whether another process runs the cell, such as one of an earlier start of the comparison."""
        return is_held(self.folder / LOCK)

    @property
    def failure(self) -> str | None:
        """Last log line of an earlier process with exactly this specification, if it failed and none succeeded."""
        known = not self.finished and self._read("failure.json").get("cell") == self.key
        return self._record(Failure, "failure.json").words if known else None

    def prepare(self) -> None:
        """Writes the specification for the process, and removes an earlier failure and result.

        A result of this specification stays, unless it is to be `fresh`: another process was faster.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("failure.json", *([RESULT] if self.spec.fresh or not self.finished else [])):
            (self.folder / name).unlink(missing_ok=True)
        self._write(CELL, {**self.spec.plain(), "cell": self.key})
        self.code, self.started = None, (time.monotonic(), self.progress().step)

    def record_failure(self) -> None:
        """Writes why the process failed, so that it is not tried again unless the user asks."""
        if self.finished:
            return
        log = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.is_file() else []
        lines = [line.strip() for line in log if line.strip() and not OF_TORCH.match(line)]
        ended = f"ended by signal {-self.code}" if self.code is not None and self.code < 0 else f"exit code {self.code}"
        self._write("failure.json", Failure(self.key, lines[-1] if lines else ended, self.code).plain())

    def result(self) -> CellResult:
        """Returns what a finished cell measured on the test split."""
        return self._record(CellResult, RESULT)

    def result_runs(self) -> list[str]:
        """Returns the run folders of the stages; none before the cell is finished, or if it tried learning rates."""
        result = self._read(RESULT)
        return list(result.get("runs", {}).values()) if result.get("cell") == self.key else []

    def trial(self) -> TrialResult:
        """Returns what a finished cell measured on another split, to choose learning rates by."""
        return self._record(TrialResult, RESULT)

    def progress(self) -> CellProgress:
        """Returns the progress, read from the metrics logs of its runs."""
        stages = [(stage["name"], stage["trainer"]["max_steps"]) for stage in self.spec.stages]
        total, done = sum(steps for _, steps in stages), 0
        for name, steps in stages:
            runs = [run for run in RunFolder.named(self.folder, name) if run.metrics.is_file()]
            curve = max(runs, key=lambda run: run.metrics.stat().st_mtime).curve("train/loss") if runs else []
            if not curve:
                return CellProgress("starting" if done == 0 else name, done, total)
            if curve[-1][0] < steps:
                return CellProgress(name, done + curve[-1][0], total, curve[-1][1])
            done += steps
        return CellProgress("answering", total, total)

    def _record(self, kind: type[R], name: str) -> R:
        try:
            return kind.read(self._read(name))
        except DataError as error:
            raise DataError(f"{self.folder / name}: {error}; delete it, and the cell is run again") from None

    def _read(self, name: str) -> dict[str, Any]:
        return _read(self.folder / name)

    def _write(self, name: str, values: dict[str, Any]) -> None:
        write_sealed(self.folder / name, values)


def _hashed(spec: CellSpec) -> dict[str, Any]:
    """Returns the parts of a specification that change the result; on which devices it is computed does not."""
    parts = {name: part for name, part in spec.plain().items() if name not in NOT_HASHED}
    tasks = {name: [task.identity, task.asked] for name, task in spec.tasks.items()}
    stages = [without_placement(stage) for stage in spec.stages]
    return {**parts, "stages": stages} | ({"tasks": tasks} if tasks else {})


def _is_same(stored: Mapping[str, Any], spec: CellSpec) -> bool:
    """Returns whether cell.json of an earlier version asks for this result: what it lacks has its default in `spec`.

    A key that only `stored` has is of a newer version, and counts as another result.
    """
    if not stored.keys() <= {"cell", *(part.name for part in fields(CellSpec))}:
        return False
    try:
        before, now = _hashed(CellSpec.read(stored)), _hashed(spec)
        stages = list(zip(before.pop("stages"), now.pop("stages"), strict=True))
        return before == now and all(_is_same_stage(*pair) for pair in stages)
    except (UserError, ValueError):  # damaged, without a plugin that is gone, or of another number of stages
        return False


def _is_same_stage(stored: Mapping[str, Any], planned: Mapping[str, Any]) -> bool:
    experiment = check_config(ExperimentConfig, planned)
    nothing, defaults = keys_that_change(experiment, "nothing"), defaults_of(experiment)
    return not RunIdentity(planned, nothing, defaults=defaults).changed_keys(stored)


def is_finished(folder: Path, key: str) -> bool:
    """Returns whether the folder of a cell has a whole result of exactly the specification that `key` names."""
    return _read(folder / RESULT).get("cell") == key


def _read(path: Path) -> dict[str, Any]:
    """Returns the content of a file; a damaged one counts as absent, with a warning."""
    try:
        return read_sealed(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        _say_damaged(path, first_line(error))
        return {}


@lru_cache(maxsize=256)
def _say_damaged(path: Path, reason: str) -> None:
    logger.warning("%s is left out: %s", path, reason)
