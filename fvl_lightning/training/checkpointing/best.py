"""The metric by which the best weights of a training are kept."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fvl_lightning.core.config.evaluation import VALIDATION_LOSS
from fvl_lightning.training.stage_interface import StageInterface


@dataclass(frozen=True)
class BestBy:
    """The loss of the validation split, or a score of an evaluation on tasks."""

    metric: str = VALIDATION_LOSS
    higher: bool = False
    """Whether a higher value is better."""

    @property
    def is_loss(self) -> bool:
        """Returns whether it is the validation loss, which each validation gives."""
        return self.metric == VALIDATION_LOSS

    def now(self, stage: StageInterface) -> float | None:
        """Returns the last value; None where there is none."""
        return stage.last_validation_loss if self.is_loss else stage.last_evaluation.get(self.metric)

    def kept(self, checkpoint: Mapping[str, Any]) -> float | None:
        """Returns the value of the weights of a checkpoint; None where it has none, as in those of another metric."""
        value = checkpoint["validation_loss"] if self.is_loss else checkpoint.get("evaluation", {}).get(self.metric)
        return None if value is None else float(value)

    def is_better(self, value: float | None, before: float | None) -> bool:
        """Returns whether a value is better than the best one before; one that is not finite never is."""
        if value is None or not math.isfinite(value):
            return False
        return before is None or (value > before if self.higher else value < before)
