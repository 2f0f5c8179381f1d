"""The callbacks of `trainer.callbacks`: building them, and refusing what would break a promise of the kit.

A registered callback is a Lightning callback that is built as `Class(config)`:

    @register("callback", "norms")
    class NormsCallback(Callback):
        @dataclass
        class Config: ...

        def __init__(self, config: Config) -> None: ...

Its `state_dict` is saved in every checkpoint and restored by a resume.
"""

from collections.abc import Sequence
from typing import Any

from lightning import Callback
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.utilities.model_helpers import is_overridden

from fvl_lightning.core.config.choices import Choice
from fvl_lightning.core.config.component_lists import ImportedClass, check_base
from fvl_lightning.core.errors import ConfigError, UserError, first_line

REFUSED: dict[type[Any], str] = {
    lightning_callbacks.Checkpoint: "the kit saves checkpoints itself: set trainer.checkpoint_every and keep_best",
    lightning_callbacks.ProgressBar: "the kit shows progress itself",
    lightning_callbacks.GradientAccumulationScheduler: "the batches per step are trainer.accumulate",
    lightning_callbacks.BatchSizeFinder: "`fvl doctor --memory-gb` estimates the batch that fits",
    lightning_callbacks.LearningRateFinder: "it trains beside the run; `tune` of a comparison chooses learning rates",
    lightning_callbacks.StochasticWeightAveraging: "it changes weights and learning rates between the steps",
    lightning_callbacks.WeightAveraging: "it changes weights between the steps",
    lightning_callbacks.BaseFinetuning: "`trainable` decides what learns, for the whole run",
    lightning_callbacks.ModelPruning: "it changes weights between the steps",
}
"""Lightning's callbacks that cannot be used, and why or what to use."""


def build_callbacks(choices: Sequence[Choice]) -> list[Callback]:
    """Returns the callbacks of a list.

    Raises:
        ConfigError: one that cannot be built, is no Lightning callback, or cannot be used here.
    """
    built = []
    for choice in choices:
        check_base(choice, Callback)
        for kind, reason in REFUSED.items():
            if issubclass(choice.component, kind):
                raise ConfigError(f"trainer.callbacks: {choice.name} cannot be used, {reason}")
        built.append(choice.build(Callback) if isinstance(choice, ImportedClass) else _build(choice))
    with_state = [one for one in built if is_overridden("state_dict", instance=one, parent=Callback)]
    keys = [one.state_key for one in with_state]
    for callback in with_state:
        if keys.count(callback.state_key) > 1:
            name = type(callback).__name__
            raise ConfigError(f"trainer.callbacks: two of {name} have one state_key, {callback.state_key}")
    return built


def _build(choice: Choice) -> Callback:
    """Returns a registered callback; ConfigError where its own code refuses to be built."""
    try:
        return choice.component(choice.config)
    except UserError:
        raise
    except Exception as error:  # a plugin's code may raise anything
        problem = f"{type(error).__name__}: {first_line(error)}"
        raise ConfigError(f"trainer.callbacks: {choice.name} cannot be built from its Config: {problem}") from error
