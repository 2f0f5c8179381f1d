"""Evaluation on tasks during a training: its scores go to the loggers and to callbacks, and change nothing else."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from fvl_lightning.core.config.component_lists import ImportedClass
from fvl_lightning.core.config.evaluation import EVALUATION, EvaluationConfig
from fvl_lightning.core.errors import ConfigError, unknown_name
from fvl_lightning.core.experiment import TrainerConfig
from fvl_lightning.training.checkpointing.best import BestBy
from fvl_lightning.training.checkpointing.rng_state import random_states, restore_random_states
from fvl_lightning.training.fault_tolerance.heartbeat import announce_evaluation
from fvl_lightning.training.fault_tolerance.signals import StopSignals
from fvl_lightning.training.stage_interface import StageInterface
from fvl_lightning.training.step_clock import clock_stopped

logger = logging.getLogger(__name__)


class TrainingEvaluation(Protocol):
    """Scores the model of a training on tasks; the package `evaluation` has one."""

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        """{name of every score, such as evaluation/textvqa/overall: whether a higher one is better}."""

    @property
    def primary(self) -> Sequence[str]:
        """The name of the score that stands for each task."""

    @property
    def counts(self) -> Mapping[str, int]:
        """{task: the number of its questions}."""

    @property
    def identities(self) -> Mapping[str, str]:
        """{description of the questions of a task: their hash}."""

    def scores(
        self, stage: StageInterface, answered: Callable[[], None], stopped: Callable[[], bool]
    ) -> dict[str, float] | None:
        """Scores the model of `stage`, in eval mode; all ranks must call it, and get equal scores.

        Args:
            stage: the stage, on its device.
            answered: called as questions are answered.
            stopped: called in between; once it returns True on any rank, no rank gets scores. All ranks call it
                together if the model is sharded.

        Returns:
            {name: finite score}; None if it was stopped.
        """


class EvaluationCallback(Callback):
    """Evaluates every `every` optimiser steps, and after the last one, before the checkpoint of that step.

    The scores go to every logger, to `trainer.callback_metrics`, and to `stage.last_evaluation`. Then each callback
    that has a method `on_evaluation_end(trainer, stage)` is called. Scores that are not finite are left out.

    An evaluation that a signal stops is made when the training is resumed.

    Args:
        evaluation: scores the model.
        config: the settings of the evaluation.
        signals: the requests to stop.
        compiled: whether blocks of the model are compiled.
        sharded: whether the model is sharded, so that all ranks must stop at the same place.
    """

    def __init__(
        self,
        evaluation: TrainingEvaluation,
        config: EvaluationConfig,
        signals: StopSignals,
        compiled: bool = False,
        sharded: bool = False,
    ) -> None:
        self._evaluation, self._every, self._signals = evaluation, config.every, signals
        self._compiled, self._sharded = compiled, sharded
        self._last_step = -1
        self._evaluated_step = -1

    def state_dict(self) -> dict[str, Any]:
        """Returns the step of the last evaluation."""
        return {"step": self._evaluated_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the step of the last evaluation."""
        self._evaluated_step = state_dict["step"]

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Evaluates where the checkpoint is of a step whose evaluation was stopped."""
        self._last_step = trainer.global_step
        if self._last_step > 0 and self._evaluated_step != self._last_step:
            self._signals.listen()  # as the checkpoint callback does, which comes later
            self._evaluate_if_due(trainer, module)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Evaluates at the end of an optimiser step, if that is due."""
        if trainer.global_step != self._last_step:
            self._last_step = trainer.global_step
            self._evaluate_if_due(trainer, module)

    def _evaluate_if_due(self, trainer: Trainer, module: LightningModule) -> None:
        step = trainer.global_step
        last = step == trainer.max_steps
        if (step % self._every and not last) or (not last and self._signals.agreed(trainer)):
            return
        assert isinstance(module, StageInterface)

        def stopped() -> bool:
            return not last and bool(self._signals.agreed(trainer) if self._sharded else self._signals.requested)

        announce_evaluation(trainer)
        with clock_stopped(trainer), undisturbed(module, trainer.strategy.root_device, self._compiled):
            scores = self._evaluation.scores(module, lambda: announce_evaluation(trainer), stopped)
        if scores is None:
            return
        self._evaluated_step, module.last_evaluation = step, scores
        if trainer.is_global_zero:
            shown = (f"{name} {scores[name]:.4f}" for name in self._evaluation.primary if name in scores)
            logger.info("step %d: %s", step, ", ".join(shown))
        trainer.callback_metrics.update({name: torch.tensor(score) for name, score in scores.items()})
        for run_logger in trainer.loggers:
            run_logger.log_metrics(scores, step)
        for callback in trainer.callbacks:
            if end := getattr(callback, "on_evaluation_end", None):
                end(trainer, module)


@contextmanager
def undisturbed(stage: StageInterface, device: torch.device, compiled: bool = False) -> Iterator[None]:
    """Sets eval mode without gradients; afterwards modes and random states are what they were.

    Compiled blocks run as they were written: other shapes than those of training would compile them anew, for
    general sizes, and training would go on with that code.
    """
    modes = [(module, module.training) for module in stage.modules()]
    states = random_states(device)
    eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
    try:
        with torch.no_grad(), eager:
            stage.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        restore_random_states(states, device)


def evaluation_callbacks(
    evaluation: TrainingEvaluation | None, config: TrainerConfig, signals: StopSignals
) -> list[Callback]:
    """Returns the callback that evaluates; none without an evaluation."""
    if evaluation is None or config.evaluate is None:
        return []
    return [EvaluationCallback(evaluation, config.evaluate, signals, bool(config.compile), config.sharded)]


def check_followed(config: TrainerConfig, higher_is_better: Mapping[str, bool]) -> None:
    """Checks the scores that `keep_best_by` and callbacks follow.

    Args:
        config: the settings of the training.
        higher_is_better: that of TrainingEvaluation; empty without an evaluation.

    Raises:
        ConfigError: a score that no task gives; a callback that has the worse values for better ones, or that would
            look at a score once per validation.
    """
    if config.keep_best_by.startswith(EVALUATION):
        _check_score(config.keep_best_by, higher_is_better, "trainer.keep_best_by")
    for choice in config.callbacks:
        values = choice.config if isinstance(choice, ImportedClass) else vars(choice.config)
        monitor, mode = values.get("monitor"), values.get("mode")
        if not isinstance(monitor, str) or not monitor.startswith(EVALUATION):
            continue
        where = f"trainer.callbacks: {choice.name}"
        _check_score(monitor, higher_is_better, f"{where}.monitor")
        if isinstance(choice, ImportedClass) and issubclass(choice.component, EarlyStopping):
            raise ConfigError(f"{where} looks at {monitor} after each validation; take early_stopping, which does not")
        wanted = "max" if higher_is_better[monitor] else "min"
        if mode in ("min", "max") and mode != wanted:
            better = "higher" if higher_is_better[monitor] else "lower"
            raise ConfigError(f"{where}.mode: a {better} {monitor} is better; take {wanted}, not {mode}")


def best_by(config: TrainerConfig, higher_is_better: Mapping[str, bool]) -> BestBy | None:
    """Returns the metric of the best weights, with its direction; None if they are not kept."""
    return BestBy(config.keep_best_by, higher_is_better.get(config.keep_best_by, False)) if config.keep_best else None


def _check_score(name: str, scores: Iterable[str], where: str) -> None:
    scores = list(scores)
    if not scores:
        raise ConfigError(f"{where}: {name} needs the task in trainer.evaluate.tasks")
    if name not in scores:
        raise unknown_name("score", name, scores, where)
