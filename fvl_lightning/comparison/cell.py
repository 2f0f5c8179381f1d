"""The cells of a comparison: an arm with a seed, its folder, what came of it, and how far it is."""

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fvl_lightning.core.atomic import write_text_atomically
from fvl_lightning.core.config.loading import config_hash
from fvl_lightning.runs.folder import RunFolder

NOT_HASHED = ("parent_run_id", "tags", "fresh", "split")
"""Parts of a specification that make no other result; what is scored on another split lies in another folder."""


class CellProgress(NamedTuple):
    """How far a cell is, over all its stages; `doing` is a word for the stage, and a loss is there while it trains."""

    doing: str
    step: int
    steps: int
    loss: float | None = None


@dataclass
class Cell:
    """An arm with a seed, in a folder of its own with cell.json, then cell.log, and result.json or failure.json."""

    arm: str
    seed: int
    folder: Path
    specification: dict[str, Any]
    """As comparison/worker.py reads it."""
    code: int | None = None
    """The exit code of this session's process, once it has ended."""
    started: tuple[float, int] | None = None
    """When this session's process was started (monotonic clock), and with how many steps done."""
    key: str = field(init=False)
    """Names what makes the result."""

    def __post_init__(self) -> None:
        self.key = config_hash({name: part for name, part in self.specification.items() if name not in NOT_HASHED})

    @property
    def name(self) -> str:
        """As messages say it."""
        return f"{self.arm} with seed {self.seed}"

    @property
    def command(self) -> list[str]:
        """What runs it."""
        return [sys.executable, "-m", "fvl_lightning.comparison.worker", str(self.folder / "cell.json")]

    @property
    def log(self) -> Path:
        """What its process says."""
        return self.folder / "cell.log"

    @property
    def finished(self) -> bool:
        """Whether there is a result of this very configuration."""
        return self._read("result.json").get("cell") == self.key

    @property
    def failure(self) -> str | None:
        """The last words of an earlier process with this very configuration that failed."""
        failure = self._read("failure.json")
        return failure["words"] if failure.get("cell") == self.key else None

    def prepare(self) -> None:
        """Writes the specification where the process will find it; forgets an earlier result or failure."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("result.json", "failure.json"):
            (self.folder / name).unlink(missing_ok=True)
        self._write("cell.json", {**self.specification, "cell": self.key})
        self.code, self.started = None, (time.monotonic(), self.progress().step)

    def record_failure(self) -> None:
        """Keeps why it failed, so that it is not tried again unless somebody asks."""
        said = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.is_file() else []
        words = [line.strip() for line in said if line.strip()]
        ended = f"ended by signal {-self.code}" if self.code is not None and self.code < 0 else f"exit code {self.code}"
        self._write("failure.json", {"cell": self.key, "words": words[-1] if words else ended, "code": self.code})

    def result(self) -> dict[str, Any]:
        """What the cell measured."""
        return self._read("result.json")

    def progress(self) -> CellProgress:
        """How far it is, from its runs' journals."""
        stages = [(stage["name"], stage["trainer"]["max_steps"]) for stage in self.specification["stages"]]
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

    def _read(self, name: str) -> dict[str, Any]:
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def _write(self, name: str, values: dict[str, Any]) -> None:
        write_text_atomically(self.folder / name, json.dumps(values, indent=2))


