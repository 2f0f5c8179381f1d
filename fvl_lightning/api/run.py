"""Trains an experiment, and reads a run folder."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fvl_lightning.api.experiment import checked
from fvl_lightning.api.model import Model, load_model
from fvl_lightning.core.errors import ConfigError, DataError, unknown_name
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.evaluation.while_training import open_evaluation
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.resume import stopped_run
from fvl_lightning.runs.run import reuse_or_train, run_training

Curve = list[tuple[int, float]]
"""(step, value) of a metric, by step."""


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a component, and how many of them are trained."""

    parameters: int
    trainable: int


@dataclass(frozen=True)
class Run:
    """A run on disk: its configuration, curves, scores and model; a path-like object, `Path(run)` is its folder."""

    folder: RunFolder

    def __fspath__(self) -> str:
        return str(self.folder.path)

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.folder.path

    @property
    def status(self) -> str:
        """One of running, finished, interrupted and failed; a killed run stays at running."""
        return str(self.folder.info["status"])

    @property
    def mlflow_run_id(self) -> str | None:
        """The id of its MLflow run; None for a run that is not tracked."""
        return self.folder.info.get("mlflow_run_id")

    @property
    def experiment(self) -> ExperimentConfig:
        """The configuration it was trained with; its plugins are imported.

        Raises:
            ConfigError: the configuration does not fit this version or its plugins.
            DataError: config.yaml is missing or broken.
        """
        return self.folder.experiment()

    @property
    def components(self) -> dict[str, ParameterCount]:
        """The size of each component of the model, from encoder to language_model."""
        counts = self.folder.info["components"]
        return {name: ParameterCount(count["parameters"], count["trainable"]) for name, count in counts.items()}

    def curve(self, metric: str) -> Curve:
        """Returns (step, value) of a metric such as train/loss.

        Raises:
            ConfigError: the run has no such metric; the sentence names those it has.
        """
        points = self.folder.curve(metric)
        if not points:
            raise unknown_name("metric", metric, self.folder.curves(), str(self.path))
        return points

    def curves(self) -> dict[str, Curve]:
        """Returns the curves of all metrics by name."""
        return self.folder.curves()

    def source_weights(self) -> dict[str, Curve]:
        """Returns the curve of each source's weight in the fusion; empty if the fusion does not weight its sources."""
        return self.folder.source_weights()

    def scores(self) -> dict[str, float]:
        """Returns what a comparison has recorded of this run, such as accuracy/macro; empty if it recorded nothing.

        Scores are recorded for runs that are tracked. `evaluate` computes them for any run.
        """
        try:
            return dict(self.folder.read_tracking().results)
        except DataError:
            return {}

    def model(self, adapters: Sequence[str] = (), device: str | None = None) -> Model:
        """Loads the trained model; arguments and errors as for `load_model`."""
        return load_model(self, adapters, device)


def open_run(reference: str | os.PathLike[str], output: str | os.PathLike[str] = "runs") -> Run:
    """Opens a run by its folder, or by its MLflow run id among the runs under `output`.

    Raises:
        DataError: there is no such run; the sentence names near ones.
    """
    return Run(RunFolder.open(os.fspath(reference), Path(output)))


def train(experiment: ExperimentConfig, resume: bool = False, resume_or_start: bool = False) -> Run:
    """Trains one stage in this process, as `fvl train` does, and returns the finished run.

    With trainer.devices or trainer.nodes above 1, torchrun must have started as many processes, each of which calls
    this function.

    Args:
        resume: continues the newest run of this name; there must be one that is not finished.
        resume_or_start: returns the newest run of this very configuration if it is finished, continues it if it is
            not, and starts a new one if there is none.

    Raises:
        ConfigError: the configuration is wrong, or is not that of the run to resume.
        DataError: shards, weights, a checkpoint or the tracking store are missing or broken.
        KeyboardInterrupt: after Ctrl-C; the step under way is finished and a checkpoint written first.
    """
    if resume and resume_or_start:
        raise ConfigError("resume, resume_or_start: pass only one, they differ when there is no run to resume")
    experiment = checked(experiment)
    try:
        if resume_or_start:
            return Run(reuse_or_train(experiment, open_evaluation=open_evaluation))
        stopped = stopped_run(experiment) if resume else None
        return Run(run_training(experiment, stopped, open_evaluation=open_evaluation))
    except (ConfigError, DataError) as error:
        if "--resume" not in str(error):
            raise
        raise type(error)(_in_python(str(error))) from error


def _in_python(message: str) -> str:
    """Returns a message with the arguments of `train` in place of the command line's options."""
    return message.replace("--resume-or-start", "resume_or_start=True").replace("--resume", "resume=True")
