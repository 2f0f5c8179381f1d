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
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvl_lightning.core.atomic import write_text_atomically
from fvl_lightning.core.config.loading import check_config, config_hash
from fvl_lightning.core.config.yaml_text import write_yaml
from fvl_lightning.core.errors import ConfigError, DataError, nearest
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.jsonl import read_sealed, write_sealed
from fvl_lightning.core.locks import held
from fvl_lightning.core.plugins import check_own_plugins
from fvl_lightning.runs.identity import RunIdentity
from fvl_lightning.runs.run_files import RunInfo, read_info, read_run_config
from fvl_lightning.tracking.metrics_log import NO_METRICS, read_metrics
from fvl_lightning.tracking.mlflow_sync import RunDescription
from fvl_lightning.tracking.run_description import read_description
from fvl_lightning.training.checkpointing.last_and_previous import LAST, present_checkpoints, problem_of

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
        runs = [run for path in folders if (run := cls(path))._has_name(name)]
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
        return ([run for run in runs if wanted and run.restored(wanted).is_of(wanted)] or runs)[-1]

    @classmethod
    def reusable(cls, output: Path, name: str, wanted: RunIdentity) -> "RunFolder | None":
        """Returns the newest run of this name and identity that is finished or can be resumed; None if there is none.

        It may have been trained on other devices. Logs a warning about a run of the same configuration whose plugins or
        data have changed since.
        """
        for run in reversed(cls.named(output, name)):
            try:
                if wanted.changed_results(run.restored(wanted).config, run.finished):
                    continue
            except DataError as error:
                logger.warning("%s is not taken: %s", run.path, error)
                continue
            if changed := wanted.changed_inputs(run.info):
                logger.warning("%s is not taken: %s changed since", run.path, " and ".join(changed))
            elif run.finished or run._has_checkpoint:
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
            with contextlib.suppress(DataError):  # a damaged run is not what is looked for
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
        """The resolved configuration as plain values, with a warning if it was edited; DataError if unreadable."""
        return read_run_config(self.path / "config.yaml", self.info.get("config_hash"))

    def experiment(self, config: Mapping[str, Any] | None = None) -> ExperimentConfig:
        """Returns the checked configuration; the run's plugins are imported.

        Args:
            config: changed values of `config`; None for it as it is.

        Raises:
            ConfigError: it does not fit this version or its plugins, or a plugin is not known on this account.
            DataError: it cannot be read.
        """
        values = self.config if config is None else config
        check_own_plugins(values.get("plugins"), str(self.path))
        return check_config(ExperimentConfig, values)

    @property
    def info(self) -> RunInfo:
        """The content of run.json; DataError if it cannot be read, or lacks a key that is asked for."""
        return read_info(self.path / "run.json")

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
        write_sealed(self.path / "run.json", {**self.info, **values})

    @property
    def tracking(self) -> Path:
        """The file with everything that is sent to MLflow besides the metrics."""
        return self.path / "tracking.json"

    def read_tracking(self) -> RunDescription:
        """Returns the content of tracking.json; DataError if there is none, or it is damaged."""
        try:
            values = read_sealed(self.tracking)
        except (OSError, ValueError):
            raise DataError(f"{self.path} was not tracked: {self.tracking.name} is missing or not valid") from None
        return read_description(values, str(self.tracking))

    def write_tracking(self, description: RunDescription) -> None:
        """Writes tracking.json."""
        write_sealed(self.tracking, description.plain())

    def is_of(self, wanted: RunIdentity) -> bool:
        """Returns whether the run has this identity; one whose configuration cannot be read has none."""
        try:
            return not (wanted.changed_keys(self.config) or wanted.changed_inputs(self.info))
        except DataError:
            return False

    def restored(self, wanted: RunIdentity) -> "RunFolder":
        """Returns the run; its config.yaml is written again if it is not what the run started with, and `wanted` is."""
        path, known = self.path / "config.yaml", self.info.get("config_hash")
        if known == config_hash(wanted.config):
            try:
                found = config_hash(read_run_config(path, None))
            except DataError:
                found = None
            if found != known:
                write_text_atomically(path, write_yaml(dict(wanted.config)))
                logger.warning("%s was changed or damaged since the run was started; it is written again", path)
        return self

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
                points[entry["step"] or 0] = entry[name]
        return sorted(points.items())

    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """Returns {metric: [(step, value)]} of all logged metrics, in the order in which they were first logged."""
        points: dict[str, dict[int, float]] = {}
        for entry in read_metrics(self.metrics):
            for name in (name for name in entry if name not in NO_METRICS):
                points.setdefault(name, {})[entry["step"] or 0] = entry[name]
        return {name: sorted(values.items()) for name, values in points.items()}

    def source_weights(self) -> dict[str, list[tuple[int, float]]]:
        """Returns {source: [(step, weight in [0, 1])]}; empty for a fusion that does not weight its sources."""
        curves = self.curves()
        return {name.removeprefix(WEIGHT): curve for name, curve in curves.items() if name.startswith(WEIGHT)}

    def _has_name(self, name: str) -> bool:
        try:
            return self.info.get("name") == name
        except DataError:
            if re.fullmatch(re.escape(Path(name).name) + r"(-[0-9]+)?", self.path.name):
                raise  # it may be a run of this name, which would begin anew in silence
            return False

    @property
    def _has_checkpoint(self) -> bool:
        run_hash = self.info.get("config_hash")
        return any(problem_of(path, run_hash=run_hash) is None for path in present_checkpoints(self.checkpoints))

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


