"""The update guard: skips steps with a non-finite loss or gradient, or a spike; too many skips end the run."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.tracking.metrics_log import JsonlLogger
from fvl_lightning.training.fault_tolerance.hang_detection import rank_names

logger = logging.getLogger(__name__)

MAX_NAMED_SAMPLES = 3
"""The number of samples that a message names; metrics.jsonl has all."""
WINDOW_UPDATES, MIN_UPDATES = 100, 20
"""The number of last updates that a step is compared with, and the least number for a comparison."""
MIN_DEVIATION = 0.05
"""The least standard deviation of a logarithm: a variation of less than 5 % counts as 5 %."""
NOT_FINITE = "its loss or gradient is not finite"


@dataclass(frozen=True)
class SkippedStep:
    """An optimiser step without an update."""

    number: int
    """The number of the step, from 1."""
    reason: str
    loss: float
    """The mean loss over the supervised tokens of all ranks."""
    norm: float
    """The gradient norm."""
    keys: Sequence[str]
    """The keys of the samples of all ranks."""
    rank_losses: Sequence[float]
    """The mean loss over the supervised tokens of each rank."""

    def __str__(self) -> str:
        """Describes the step, and names the ranks whose own loss is not finite if there are several ranks."""
        not_finite = [rank for rank, loss in enumerate(self.rank_losses) if not math.isfinite(loss)]
        where = f" on {rank_names(not_finite)}" if not_finite and len(self.rank_losses) > 1 else ""
        return f"loss {self.loss:.3g}{where}, gradient norm {self.norm:.3g}, samples {_sample_names(self.keys)}"


class UpdateGuard:
    """Decides which steps to skip, and counts consecutive skips; all ranks decide alike, on the same numbers.

    Args:
        limit: the number of consecutive steps that may be skipped.
        spike_threshold: skips a step if the logarithm of its loss or gradient norm is more than this many robust
            standard deviations above the median of the last updates; None skips no spikes. A robust standard deviation
            is 1.4826 times the median absolute deviation from the median.
    """

    def __init__(self, limit: int, spike_threshold: float | None = None) -> None:
        self.limit, self.spike_threshold = limit, spike_threshold
        self.in_a_row = 0
        self.recent: dict[str, list[float]] = {"loss": [], "gradient norm": []}
        """{quantity: its logarithm at the last updates}; empty without a spike threshold."""

    def reason_to_skip(self, loss: float, norm: float) -> str | None:
        """Returns the reason to skip a step with this loss and gradient norm, or None to make the update."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return NOT_FINITE
        if self.spike_threshold is None:
            return None
        for name, value in (("loss", loss), ("gradient norm", norm)):
            above = deviations_above(value, self.recent[name])
            if above > self.spike_threshold:
                count = len(self.recent[name])
                return f"its {name} is {above:.1f} robust standard deviations above those of the last {count} updates"
        return None

    def record_update(self, loss: float, norm: float) -> None:
        """Records a step that made its update."""
        self.in_a_row = 0
        if self.spike_threshold is not None:
            for name, value in (("loss", loss), ("gradient norm", norm)):
                if value > 0:  # a step without supervised tokens has neither
                    self.recent[name] = [*self.recent[name], math.log(value)][-WINDOW_UPDATES:]

    def record_skip(self, step: SkippedStep, loggers: Sequence[Logger]) -> None:
        """Records a skipped step: logs a warning, and writes the keys of its samples to metrics.jsonl.

        Raises:
            ConfigError: more than `limit` consecutive steps were skipped.
        """
        self.in_a_row += 1
        per_rank = {"rank_losses": [str(loss) for loss in step.rank_losses]} if len(step.rank_losses) > 1 else {}
        for run_logger in loggers:
            run_logger.log_metrics({"train/skipped_in_a_row": float(self.in_a_row)}, step.number)
            if isinstance(run_logger, JsonlLogger):
                run_logger.note(
                    step.number, skipped=list(step.keys), reason=step.reason, loss=str(step.loss),
                    gradient_norm=str(step.norm), **per_rank,
                )  # fmt: skip
        if self.in_a_row > self.limit:
            steps = "1 step" if self.in_a_row == 1 else f"{self.in_a_row} steps in a row"
            finite = "no finite loss and gradient" if step.reason == NOT_FINITE else "no update"
            spike = "" if step.reason == NOT_FINITE else f"; {step.reason}"
            or_raise = "" if step.reason == NOT_FINITE else "raise trainer.spike_threshold, "
            raise ConfigError(
                f"step {step.number}: {finite} for {steps}, and trainer.max_skipped is {self.limit} ({step}{spike}): "
                f"lower optimizer.learning_rate, raise optimizer.warmup_steps, {or_raise}or look at the samples"
            )
        logger.warning("step %d makes no update, since %s: %s", step.number, step.reason, step)


class ValidationWatch:
    """Keeps the loss and the samples of each validation batch of this rank, to find those that are not finite."""

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, Sequence[str]]] = []

    def add(self, loss: Tensor, keys: Sequence[str]) -> None:
        """Adds a batch; its loss, a scalar, stays on the device."""
        self._batches.append((loss.detach(), keys))

    def check(self, step: int, mean: float, gather_from_ranks: Callable[[Any], list[Any]]) -> None:
        """Logs a warning if the mean loss is not finite, with samples of the first batch that is not.

        Args:
            step: the number of the last optimiser step.
            mean: the mean loss over all batches, equal on all ranks.
            gather_from_ranks: returns the values of all ranks for a value of this one.
        """
        batches, self._batches = self._batches, []
        if math.isfinite(mean):
            return
        finite = torch.stack([loss for loss, _ in batches]).isfinite().tolist() if batches else []
        not_finite = [keys for (_, keys), good in zip(batches, finite, strict=True) if not good]
        not_finite = [keys for rank_keys in gather_from_ranks(not_finite) for keys in rank_keys]
        where = "over all batches"
        if not_finite:
            where = f"in {len(not_finite)} batches, first with samples {_sample_names(not_finite[0])}"
        logger.warning(
            "step %d: the validation loss is %s, not finite %s; it gives no best checkpoint", step, mean, where
        )


def _sample_names(keys: Sequence[str]) -> str:
    return ", ".join(keys[:MAX_NAMED_SAMPLES]) + (
        f" and {len(keys) - MAX_NAMED_SAMPLES} more" if len(keys) > MAX_NAMED_SAMPLES else ""
    )


def deviations_above(value: float, recent: Sequence[float]) -> float:
    """Returns by how many robust standard deviations log(`value`) exceeds `recent`; 0 if these are too few."""
    if len(recent) < MIN_UPDATES or value <= 0:
        return 0.0
    middle = median(recent)
    deviation = 1.4826 * median(abs(logarithm - middle) for logarithm in recent)
    return (math.log(value) - middle) / max(deviation, MIN_DEVIATION)
