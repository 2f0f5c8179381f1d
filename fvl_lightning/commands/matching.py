"""Arms of one size: what lies between encoder and language model gets as many parameters in all of them."""

import dataclasses
from collections.abc import Sequence
from math import isqrt

from fvl_lightning.commands.arms import Arms
from fvl_lightning.commands.train import build_stage
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.training.components import count_parameters

TOLERANCE = 0.01
BETWEEN = ("fusion", "projector")
"""The components that a comparison of fusions sizes; the norms around a fusion count with it."""


def match_parameters(plans: Sequence[Arms], baseline: str) -> None:
    """Sets the hidden width of every arm's projector so that it has the parameters of the baseline's, to 1 %.

    Args:
        plans: the arms of each seed, of equal sizes; they are changed in place.
        baseline: the arm that stays as it is.

    Raises:
        ConfigError: a projector without a hidden width, or an arm that is too large whatever it is.
    """
    target = _between(plans[0][baseline][-1])
    for arm, stages in plans[0].items():
        if arm == baseline:
            continue
        hidden = _solved(arm, stages[-1], target)
        for arms in plans:
            for number, stage in enumerate(arms[arm]):
                if stage.projector is not None:
                    arms[arm][number] = _with_hidden(stage, hidden)


def _solved(arm: str, experiment: ExperimentConfig, target: int) -> int:
    """The hidden width at which `experiment` comes closest to `target` parameters."""
    if experiment.projector.name != "mlp" or experiment.projector.config.depth < 2:
        raise ConfigError(f"match: parameters needs a projector with a hidden width, mlp of depth 2 or more, in {arm}")
    one, two, three = (_between(_with_hidden(experiment, hidden)) for hidden in (1, 2, 3))
    # Linear layers: the count is square * h^2 + slope * h + rest.
    square = (three - 2 * two + one) // 2
    slope = two - one - 3 * square
    rest = one - slope - square
    low = isqrt(max(0, (target - rest) // square)) if square else max(0, (target - rest) // slope)
    while low > 1 and square * low**2 + slope * low + rest > target:
        low -= 1
    hidden = min((max(1, low), low + 1), key=lambda width: abs(square * width**2 + slope * width + rest - target))
    found = _between(_with_hidden(experiment, hidden))
    if abs(found - target) > TOLERANCE * target:
        raise ConfigError(
            f"match: parameters: {arm} has {found:,} parameters between encoder and language model with a hidden width "
            f"of {hidden}, which is as near as it comes to the baseline's {target:,}; take match: natural"
        )
    return hidden


def _between(experiment: ExperimentConfig) -> int:
    counts = count_parameters(build_stage(experiment, "meta").model)
    return sum(counts[component]["parameters"] for component in BETWEEN)


def _with_hidden(experiment: ExperimentConfig, hidden: int) -> ExperimentConfig:
    projector = experiment.projector
    sized = dataclasses.replace(projector, config=dataclasses.replace(projector.config, hidden=hidden))
    return dataclasses.replace(experiment, projector=sized)
