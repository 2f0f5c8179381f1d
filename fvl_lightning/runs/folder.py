"""The folder of a run: its configuration, its status, its checkpoints and its model.

    <output>/<name>/
        config.yaml     the resolved configuration
        run.json        id, status, stage, hashes, the runs it started from, measurements
        metrics.jsonl   one line per logged step
        tracking.json   what is sent to MLflow besides the metrics
        checkpoints/    last.ckpt, from which a resume starts, and previous.ckpt, the one before
        model/          safetensors, configuration and tokenizer, once finished
"""

import contextlib
import itertools
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fvl_lightning.core.atomic import write_text_atomically
from fvl_lightning.core.config.loading import config_hash
from fvl_lightning.core.config.yaml_text import write_yaml
from fvl_lightning.core.errors import ConfigError, DataError, nearest
from fvl_lightning.core.locks import held
from fvl_lightning.runs.identity import RunIdentity
from fvl_lightning.tracking.metrics_log import NO_METRICS, read_metrics
from fvl_lightning.training.checkpointing.files import LAST, is_whole, present_checkpoints

logger = logging.getLogger(__name__)

DEMOS = {Path("runs/demo"): "`make demo`", Path("runs/demo-quick"): "`fvl demo --quick`"}
"""Folders that the examples name, and the commands that make them."""
WEIGHT = "mass/"
"""The metrics `mass/<source>` are the weights of the sources."""


@dataclass(frozen=True)
class RunFolder:
    """Paths and records of one run."""

    path: Path

    @classmethod
    def create(cls, output: Path, name: str, config: dict[str, Any]) -> "RunFolder":
        """Creates the folder `<output>/<name>`, with a number if it exists already; no two processes get the same one.

        Raises:
            DataError: the folder cannot be created.
        """
        try:
            run = cls(_new_folder(output / name))
            run.checkpoints.mkdir()
        except OSError as error:
            where = f"output: the run folder {output / name}"
            raise DataError(f"{where} cannot be created ({error.strerror})") from None
        write_text_atomically(run.path / "config.yaml", write_yaml(config))
        run.record(status="running", name=name, stage=config["stage"]["name"], config_hash=config_hash(config))
        return run

    @classmethod
    def named(cls, output: Path, name: str) -> list["RunFolder"]:
        """Returns the runs of exactly this name, oldest first; a name may contain folders, as in sweep/b."""
        first = output / name
        try:
            folders = [path for path in first.parent.iterdir() if path.name.startswith(first.name)]
        except OSError:
            return []
        runs = [run for path in folders if (run := cls(path)).info.get("name") == name]
        return sorted(runs, key=lambda run: run._number)

    @classmethod
    def latest(cls, output: Path, name: str, wanted: RunIdentity | None = None) -> "RunFolder":
        """Returns the newest run with this name and the identity `wanted`; if there is none, the newest with this name.

        Raises:
            DataError: no run has this name.
        """
        runs = cls.named(output, name)
        if not runs:
            raise DataError(f"--resume: no run named {name} in {output}")
        return ([run for run in runs if wanted and run.is_of(wanted)] or runs)[-1]

    @classmethod
    def reusable(cls, output: Path, name: str, wanted: RunIdentity) -> "RunFolder | None":
        """Returns the newest run of this name and identity that is finished or can be resumed; None if there is none.

        Logs a warning about a run of the same configuration whose plugins or data have changed since.
        """
        for run in reversed(cls.named(output, name)):
            if wanted.changed_keys(run.config):
                continue
            if changed := wanted.changed_inputs(run.info):
                logger.warning("%s is not taken: %s changed since", run.path, " and ".join(changed))
            elif run.finished or any(map(is_whole, present_checkpoints(run.checkpoints))):
                return run
        return None

    @classmethod
    def open(cls, reference: str, output: Path = Path("runs")) -> "RunFolder":
        """Opens a run by its folder, or by its MLflow run id among the folders under `output`.

        Raises:
            DataError: `reference` is neither; the sentence names near ones.
        """
        path = Path(reference)
        if (path / "run.json").is_file():
            return cls(path)
        known = sorted(file.parent for file in output.glob("**/run.json")) if output.is_dir() else []
        for candidate in known:
            if cls(candidate).info.get("mlflow_run_id") == reference:
                return cls(candidate)
        what = "is not a run folder (run.json is missing)" if path.exists() else "is no run folder and no run id"
        if (path / "comparison.json").is_file():
            inside = ", ".join(sorted(str(file.parent) for file in path.glob("**/run.json")))
            raise DataError(f"{path} is the folder of a comparison, not of a run; its runs: {inside}")
        for folder, command in DEMOS.items():
            if path.is_relative_to(folder) and not folder.exists():
                raise DataError(f"{reference} {what}; {command} trains the runs in {folder}")
        close = nearest(reference, map(str, known))
        hint = f"; did you mean {close}?" if close else f"; runs in {output}: {', '.join(map(str, known)) or 'none'}"
        raise DataError(f"{reference} {what}{hint}")

    @property
    def checkpoints(self) -> Path:
        """Folder of the training checkpoints."""
        return self.path / "checkpoints"

    @property
    def last_checkpoint(self) -> Path:
        """The checkpoint from which a resumed run starts."""
        return self.checkpoints / LAST

    @property
    def model(self) -> Path:
        """Folder of the saved model."""
        return self.path / "model"

    @property
    def metrics(self) -> Path:
        """The metrics log, in JSON Lines."""
        return self.path / "metrics.jsonl"

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration as plain values; DataError if it cannot be read."""
        try:
            return yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError):
            raise DataError(f"{self.path / 'config.yaml'} is missing or no valid YAML") from None

    @property
    def info(self) -> dict[str, Any]:
        """The content of run.json; DataError if it cannot be read."""
        try:
            return json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError:
            raise DataError(f"{self.path / 'run.json'} is not valid JSON") from None

    @property
    def finished(self) -> bool:
        """Returns whether the run has ended and has saved its model."""
        return self.info.get("status") == "finished"

    def check_finished(self) -> None:
        """Raises ConfigError if the run has no model yet."""
        if not self.finished:
            raise ConfigError(
                f"{self.path} is {self.info.get('status')}, it has no model yet; `--resume` finishes it, and "
                "`fvl export --checkpoint last` takes what it has"
            )

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Locks the run, so that no other process trains it; the lock ends with this process, even if workers survive.

        Raises:
            DataError: another process has the lock.
        """
        with held(self.path / ".lock", f"{self.path} is being trained by another process"):
            yield

    def record(self, **values: Any) -> None:
        """Adds values to run.json."""
        write_text_atomically(self.path / "run.json", json.dumps({**self.info, **values}, indent=2))

    @property
    def tracking(self) -> Path:
        """The file with everything that is sent to MLflow besides the metrics."""
        return self.path / "tracking.json"

    def read_tracking(self) -> dict[str, Any]:
        """Returns the content of tracking.json; DataError if there is none."""
        try:
            return json.loads(self.tracking.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise DataError(f"{self.path} was not tracked: {self.tracking.name} is missing or not valid") from None

    def write_tracking(self, description: dict[str, Any]) -> None:
        """Writes tracking.json."""
        write_text_atomically(self.tracking, json.dumps(description, indent=2))

    def is_of(self, wanted: RunIdentity) -> bool:
        """Returns whether the run has this identity."""
        return not (wanted.changed_keys(self.config) or wanted.changed_inputs(self.info))

    def check_resumable(self, wanted: RunIdentity) -> None:
        """Raises ConfigError or DataError unless the run has this identity and a checkpoint to resume from."""
        wanted.check_resumable(self.config, self.info, str(self.path))
        if not present_checkpoints(self.checkpoints):
            raise DataError(f"--resume: {self.path} stopped before its first checkpoint; start it without --resume")

    def curve(self, name: str) -> list[tuple[int, float]]:
        """Returns (step, value) of a metric; a step that was logged again after a resume has its later value."""
        points: dict[int, float] = {}
        for entry in read_metrics(self.metrics):
            if name in entry:
                points[entry["step"]] = entry[name]
        return sorted(points.items())

    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """Returns {metric: [(step, value)]} of all logged metrics, in the order in which they were first logged."""
        points: dict[str, dict[int, float]] = {}
        for entry in read_metrics(self.metrics):
            for name in (name for name in entry if name not in NO_METRICS):
                points.setdefault(name, {})[entry["step"]] = entry[name]
        return {name: sorted(values.items()) for name, values in points.items()}

    def source_weights(self) -> dict[str, list[tuple[int, float]]]:
        """Returns {source: [(step, weight in [0, 1])]}; empty for a fusion that does not weight its sources."""
        curves = self.curves()
        return {name.removeprefix(WEIGHT): curve for name, curve in curves.items() if name.startswith(WEIGHT)}

    @property
    def _number(self) -> int:
        suffix = self.path.name.removeprefix(Path(self.info["name"]).name).removeprefix("-")
        return int(suffix) if suffix.isdecimal() else 1


def _new_folder(path: Path) -> Path:
    """Creates `path`, or the first of path-2, path-3, ... that does not exist, in one atomic step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        folder = path if number == 1 else path.with_name(f"{path.name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            break
    return folder


