"""Steps whose loss or gradient is not finite make no update; too many of them in a row end the run."""

import logging
from collections.abc import Sequence

from lightning.pytorch.loggers import Logger

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.training.journal import Journal

logger = logging.getLogger(__name__)

NAMED = 3
"""Samples that a sentence names; the journal has all."""


class UpdateGuard:
    """Counts the steps in a row that made no update. Every rank counts the same, since all see the same sums."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_a_row = 0

    def updated(self) -> None:
        """A step made its update."""
        self.in_a_row = 0

    def skipped(self, step: int, loss: float, norm: float, keys: Sequence[str], loggers: Sequence[Logger]) -> None:
        """A step made none: warns, and writes the keys of its samples into the journal.

        Args:
            step: the optimiser step, counted from 1.
            loss: the mean over the step's supervised tokens, of all ranks.
            norm: of the gradient.
            keys: the step's samples, of all ranks.

        Raises:
            ConfigError: more than `limit` in a row.
        """
        self.in_a_row += 1
        named = ", ".join(keys[:NAMED]) + (f" and {len(keys) - NAMED} more" if len(keys) > NAMED else "")
        found = f"loss {loss:.3g}, gradient norm {norm:.3g}, samples {named}"
        for run_logger in loggers:
            run_logger.log_metrics({"train/skipped_in_a_row": float(self.in_a_row)}, step)
            if isinstance(run_logger, Journal):
                run_logger.note(step, skipped=list(keys), loss=str(loss), gradient_norm=str(norm))
        if self.in_a_row > self.limit:
            steps = "1 step" if self.in_a_row == 1 else f"{self.in_a_row} steps in a row"
            raise ConfigError(
                f"step {step}: no finite loss and gradient for {steps}, and trainer.max_skipped "
                f"is {self.limit} ({found}): lower optimizer.learning_rate, raise optimizer.warmup_steps, or look at "
                "the samples"
            )
        logger.warning("step %d makes no update, since its loss or gradient is not finite: %s", step, found)
