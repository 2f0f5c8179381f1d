"""Learning-rate schedule: linear warm-up, then cosine decay."""

import logging
import math

import torch
from torch.optim.lr_scheduler import LambdaLR

from fvl_lightning.core.experiment import OptimizerConfig

logger = logging.getLogger(__name__)


def warmup_cosine(optimizer: torch.optim.Optimizer, config: OptimizerConfig, steps: int) -> LambdaLR:
    """Returns a linear warm-up over `warmup_steps`, then a cosine decay to `final_fraction` of the peak at `steps`."""
    if config.warmup_steps > steps:
        logger.warning(
            "optimizer.warmup_steps: the learning rate rises for %d steps and trainer.max_steps is %d, it ends at %.3g "
            "of its peak", config.warmup_steps, steps, steps / config.warmup_steps,
        )  # fmt: skip

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return config.final_fraction + (1 - config.final_fraction) * cosine

    return LambdaLR(optimizer, factor)
