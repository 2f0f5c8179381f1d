"""Ends a training whose metric no longer improves."""

import logging
from dataclasses import dataclass
from typing import Any, Literal

from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping

from fvl_lightning.core.config.evaluation import EVALUATION
from fvl_lightning.core.config.fields import number
from fvl_lightning.core.errors import unknown_name
from fvl_lightning.core.registry import register
from fvl_lightning.training.stage_interface import StageInterface

logger = logging.getLogger(__name__)


@register("callback", "early_stopping")
class EarlyStoppingCallback(EarlyStopping):
    """Ends the training when a metric has not improved for some validations, and keeps the weights of that step.

    The metric is looked at after each validation; a score of `trainer.evaluate` is looked at after each evaluation.
    """

    @dataclass
    class Config:
        """The metric, and when it counts as better."""

        monitor: str = "validation/loss"
        """Any logged metric, such as train/loss, of which the last logged value counts; or a score of
        `trainer.evaluate`, such as evaluation/textvqa/overall."""
        mode: Literal["min", "max"] = "min"
        """Whether a lower or a higher value is better."""
        patience: int = number(3, at_least=1)
        """Validations, or evaluations, without a better value after which the training ends."""
        min_delta: float = number(0.0, at_least=0)
        """Least difference that counts as better."""

    def __init__(self, config: Config) -> None:
        super().__init__(config.monitor, config.min_delta, config.patience, mode=config.mode)

    def on_validation_end(self, trainer: Trainer, *arguments: Any) -> None:
        """Stops the training after `patience` validations without a better value.

        Raises:
            ConfigError: no metric of this name was logged.
        """
        if self.monitor.startswith(EVALUATION):
            return
        if self.monitor not in trainer.callback_metrics:
            where = "trainer.callbacks: early_stopping.monitor"
            raise unknown_name("metric", self.monitor, trainer.callback_metrics, where)
        self._look(trainer, *arguments)

    def on_evaluation_end(self, trainer: Trainer, stage: StageInterface) -> None:
        """Stops the training after `patience` evaluations without a better score; one without it does not count."""
        if self.monitor in stage.last_evaluation:
            self._look(trainer, stage)

    def _look(self, trainer: Trainer, *arguments: Any) -> None:
        super().on_validation_end(trainer, *arguments)
        if trainer.should_stop and self.stopping_reason_message and trainer.is_global_zero:
            logger.info("step %d: the training ends early: %s", trainer.global_step, self.stopping_reason_message)
