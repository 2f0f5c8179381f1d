"""Ends a training whose metric no longer improves."""

import logging
from dataclasses import dataclass
from typing import Any, Literal

from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping

from fvl_lightning.core.config.fields import number
from fvl_lightning.core.errors import unknown_name
from fvl_lightning.core.registry import register

logger = logging.getLogger(__name__)


@register("callback", "early_stopping")
class EarlyStoppingCallback(EarlyStopping):
    """Ends the training when a metric has not improved for some validations, and keeps the weights of that step.

    The metric is looked at after each validation.
    """

    @dataclass
    class Config:
        """The metric, and when it counts as better."""

        monitor: str = "validation/loss"
        """Any logged metric, such as train/loss, of which the last logged value counts."""
        mode: Literal["min", "max"] = "min"
        """Whether a lower or a higher value is better."""
        patience: int = number(3, at_least=1)
        """Validations without a better value after which the training ends."""
        min_delta: float = number(0.0, at_least=0)
        """Least difference that counts as better."""

    def __init__(self, config: Config) -> None:
        super().__init__(config.monitor, config.min_delta, config.patience, mode=config.mode)

    def on_validation_end(self, trainer: Trainer, *arguments: Any) -> None:
        """Stops the training after `patience` validations without a better value.

        Raises:
            ConfigError: no metric of this name was logged.
        """
        if self.monitor not in trainer.callback_metrics:
            where = "trainer.callbacks: early_stopping.monitor"
            raise unknown_name("metric", self.monitor, trainer.callback_metrics, where)
        super().on_validation_end(trainer, *arguments)
        if trainer.should_stop and self.stopping_reason_message and trainer.is_global_zero:
            logger.info("step %d: the training ends early: %s", trainer.global_step, self.stopping_reason_message)
