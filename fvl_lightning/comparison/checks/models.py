"""Checks that every arm can be built, and that its fusion and projector compute what they declare."""

from collections.abc import Callable

from fvl_lightning.comparison.plan import Arms
from fvl_lightning.core.errors import ConfigError, UserError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.doctor.model import shaped_stage
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration
from fvl_lightning.modeling.shapes import in_own_code, try_connector
from fvl_lightning.stages.base import Stage


def build_arms(
    arms: Arms, build: Callable[[ExperimentConfig], Stage] | None = None
) -> dict[str, list[Stage]]:
    """Builds the stages of every arm on the meta device, and sends features without values through each.

    Args:
        arms: their experiments.
        build: builds and checks a stage; None for build_checked.

    Raises:
        ConfigError: arms that cannot be built or cannot compute, all of them in one sentence.
    """
    built: dict[str, list[Stage]] = {}
    problems: list[str] = []
    for arm, stages in arms.items():
        try:
            built[arm] = [(build or build_checked)(stage) for stage in stages]
        except UserError as error:
            problems.append(f"arm {arm}: {error}")
    if problems:
        raise ConfigError("; ".join(problems))
    return built


def build_checked(
    experiment: ExperimentConfig, shaped: Callable[[ExperimentConfig], Stage] = shaped_stage
) -> Stage:
    """Builds a stage with its adapters on the meta device, and checks what its components compute.

    Args:
        experiment: that of the stage.
        shaped: builds the stage on the meta device.

    Raises:
        ConfigError: a component cannot be built, or returns another shape than it declares.
    """
    try:
        stage = shaped(experiment)
    except UserError:
        raise
    except Exception as error:  # a bug in a component of the user's own
        raise ConfigError(f"stage {experiment.name} cannot be built: {in_own_code(error)}") from error
    if isinstance(stage.model, FlorenceVLForConditionalGeneration):
        try_connector(stage.model)
    return stage
