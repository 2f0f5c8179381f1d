"""Steps that make no update: whose loss or gradient is not finite or, where asked, a spike; too many end the run."""

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
"""Samples that a sentence rank_names; the journal has all."""
WINDOW, FEWEST = 100, 20
"""Updates that a step is compared with, and how many there must be."""
SMALLEST_DEVIATION = 0.05
"""Of a logarithm: what varies by less than 5 % is taken to vary by as much."""
NOT_FINITE = "its loss or gradient is not finite"


@dataclass(frozen=True)
class Step:
    """An optimiser step that makes no update."""

    number: int
    """Counted from 1."""
    reason: str
    loss: float
    """The mean over the step's supervised tokens, of all ranks."""
    norm: float
    """Of the gradient."""
    keys: Sequence[str]
    """The step's samples, of all ranks."""
    rank_losses: Sequence[float]
    """The means over the supervised tokens of each rank."""

    def __str__(self) -> str:
        """What was found, in words; with the ranks whose own loss is not finite, where there are several."""
        spoilt = [rank for rank, loss in enumerate(self.rank_losses) if not math.isfinite(loss)]
        where = f" on {rank_names(spoilt)}" if spoilt and len(self.rank_losses) > 1 else ""
        return f"loss {self.loss:.3g}{where}, gradient norm {self.norm:.3g}, samples {_named(self.keys)}"


class UpdateGuard:
    """Says which steps make no update, and counts those in a row. Every rank says the same, of the same numbers.

    Args:
        limit: so many may make none in a row.
        spike_threshold: a step is a spike where the logarithm of its loss, or of its gradient norm, lies more robust
            standard deviations than this above the median of the last updates; None looks for none. A robust standard
            deviation is 1.4826 times the median absolute deviation from the median.
    """

    def __init__(self, limit: int, spike_threshold: float | None = None) -> None:
        self.limit, self.spike_threshold = limit, spike_threshold
        self.in_a_row = 0
        self.recent: dict[str, list[float]] = {"loss": [], "gradient norm": []}
        """Logarithms of what the last updates had, where spikes are looked for."""

    def objection(self, loss: float, norm: float) -> str | None:
        """Why a step makes no update; None where it makes one."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return NOT_FINITE
        if self.spike_threshold is None:
            return None
        for name, value in (("loss", loss), ("gradient norm", norm)):
            above = deviations(value, self.recent[name])
            if above > self.spike_threshold:
                count = len(self.recent[name])
                return f"its {name} is {above:.1f} robust standard deviations above those of the last {count} updates"
        return None

    def updated(self, loss: float, norm: float) -> None:
        """A step made its update."""
        self.in_a_row = 0
        if self.spike_threshold is not None:
            for name, value in (("loss", loss), ("gradient norm", norm)):
                if value > 0:  # a step without supervised tokens has neither
                    self.recent[name] = [*self.recent[name], math.log(value)][-WINDOW:]

    def skipped(self, step: Step, loggers: Sequence[Logger]) -> None:
        """A step made none: warns, and writes the keys of its samples into the journal.

        Raises:
            ConfigError: more than `limit` in a row.
        """
        self.in_a_row += 1
        facts = {"rank_losses": [str(loss) for loss in step.rank_losses]} if len(step.rank_losses) > 1 else {}
        for run_logger in loggers:
            run_logger.log_metrics({"train/skipped_in_a_row": float(self.in_a_row)}, step.number)
            if isinstance(run_logger, JsonlLogger):
                run_logger.note(
                    step.number, skipped=list(step.keys), reason=step.reason, loss=str(step.loss),
                    gradient_norm=str(step.norm), **facts,
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
    """The loss and the samples of every validation batch of this rank, for who looks for one that is not finite."""

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, Sequence[str]]] = []

    def add(self, loss: Tensor, keys: Sequence[str]) -> None:
        """Adds a batch; its loss, a scalar, stays on the device."""
        self._batches.append((loss.detach(), keys))

    def check(self, step: int, mean: float, of_all_ranks: Callable[[Any], list[Any]]) -> None:
        """Warns where the mean over all batches is not finite, naming samples of the first batch that made it so.

        Args:
            mean: the same on all ranks.
            of_all_ranks: gathers a value of each rank.
        """
        batches, self._batches = self._batches, []
        if math.isfinite(mean):
            return
        finite = torch.stack([loss for loss, _ in batches]).isfinite().tolist() if batches else []
        spoilt = [keys for (_, keys), good in zip(batches, finite, strict=True) if not good]
        spoilt = [keys for of_rank in of_all_ranks(spoilt) for keys in of_rank]
        found = f"in {len(spoilt)} batches, first with samples {_named(spoilt[0])}" if spoilt else "over all batches"
        logger.warning(
            "step %d: the validation loss is %s, not finite %s; no best checkpoint is kept of it", step, mean, found
        )


def _named(keys: Sequence[str]) -> str:
    return ", ".join(keys[:MAX_NAMED_SAMPLES]) + (
        f" and {len(keys) - MAX_NAMED_SAMPLES} more" if len(keys) > MAX_NAMED_SAMPLES else ""
    )


def deviations(value: float, recent: Sequence[float]) -> float:
    """How many robust standard deviations the logarithm of `value` lies above `recent`; 0 where those are too few."""
    if len(recent) < FEWEST or value <= 0:
        return 0.0
    middle = median(recent)
    deviation = 1.4826 * median(abs(logarithm - middle) for logarithm in recent)
    return (math.log(value) - middle) / max(deviation, SMALLEST_DEVIATION)
