"""The loggers, the callbacks and the evaluation of an experiment, beside the kit's own."""

import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from lightning import Callback
from lightning.pytorch.loggers.logger import DummyLogger, Logger

from fvl_lightning.core.config.loading import as_plain
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.tracking.loggers.base import LoggedRun, build_loggers
from fvl_lightning.tracking.metrics_log import JsonlLogger
from fvl_lightning.training.callbacks.base import build_callbacks
from fvl_lightning.training.callbacks.evaluation import TrainingEvaluation, check_followed
from fvl_lightning.training.callbacks.guard import CallbackGuard
from fvl_lightning.training.checkpointing.last_and_previous import read_checkpoint
from fvl_lightning.training.distributed.process_group import Ranks

OpenEvaluation = Callable[[ExperimentConfig, Ranks], TrainingEvaluation]
"""Opens the evaluation of an experiment on the ranks of its training, before anything is trained."""


def opened_evaluation(
    experiment: ExperimentConfig, open_evaluation: OpenEvaluation | None, ranks: Ranks
) -> TrainingEvaluation | None:
    """Opens the evaluation of an experiment, and checks the scores that its callbacks and best weights follow.

    Args:
        experiment: the experiment.
        open_evaluation: see run_training; needed where `trainer.evaluate` is set.
        ranks: the ranks of the training.

    Returns:
        The evaluation; None if `trainer.evaluate` is not set.

    Raises:
        ConfigError: a mistake in `trainer.evaluate`, a task, or the name of a score.
        DataError: the rows of a task cannot be read.
    """
    if experiment.trainer.evaluate is None:
        check_followed(experiment.trainer, {})
        return None
    if open_evaluation is None:
        raise ConfigError("trainer.evaluate: this program trains without evaluation; use `fvl train`")
    evaluation = open_evaluation(experiment, ranks)
    check_followed(experiment.trainer, evaluation.higher_is_better)
    return evaluation


def loggers_of(
    experiment: ExperimentConfig, run: RunFolder, metrics_log: JsonlLogger | None, checkpoint: Path | None
) -> list[Logger]:
    """Returns the metrics log and the experiment's loggers; on the ranks without a metrics log one that does nothing.

    Lightning's callbacks that log require a logger on every rank.

    Raises:
        ConfigError: a logger cannot be built.
    """
    if metrics_log is None:
        return [DummyLogger()] if experiment.trainer.callbacks else []
    key = run.info.get("key") or uuid.uuid4().hex
    run.record(key=key)
    step = read_checkpoint(checkpoint)["global_step"] if checkpoint else 0
    name = "/".join(run.path.parts[-2:])
    return [
        metrics_log,
        *build_loggers(experiment.trainer.loggers, LoggedRun(run.path, name, key, step, as_plain(experiment))),
    ]


def callbacks_of(experiment: ExperimentConfig, first: Sequence[Callback], last: Sequence[Callback]) -> list[Callback]:
    """Returns the kit's callbacks with the experiment's between them, and a guard before all if there are any."""
    chosen = build_callbacks(experiment.trainer.callbacks)
    guard = [CallbackGuard(experiment.trainer, chosen)] if chosen else []
    return [*guard, *first, *chosen, *last]
