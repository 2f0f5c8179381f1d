"""Notices a callback of `trainer.callbacks` that changes what only the kit may change."""

from collections.abc import Sequence
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import TrainerConfig
from fvl_lightning.training.stage_interface import StageInterface

STATE = (type(None), bool, int, float, str, bytes, Tensor)
"""Types in a callback's state that a checkpoint can hold."""


class CallbackGuard(Callback):
    """Ends a training in which a callback changed weights between the steps, what learns, or the number of steps.

    Weights are watched by the counters that torch keeps of changes in place, not by their values: a change through
    `parameter.data` is not seen. Those of a sharded model are not watched. It must be the first callback.

    Args:
        config: the settings of the training.
        callbacks: the callbacks of `trainer.callbacks`, to be named.
    """

    def __init__(self, config: TrainerConfig, callbacks: Sequence[Callback]) -> None:
        self._config = config
        self._names = " or ".join(dict.fromkeys(type(callback).__name__ for callback in callbacks))
        self._callbacks = callbacks
        self._seen: list[tuple[int, int, bool]] | None = None

    def on_train_start(self, trainer: Trainer, stage: StageInterface) -> None:
        """Remembers the weights before the first step, and checks the states that the callbacks begin with."""
        self._remember(stage)
        for callback in self._callbacks:
            check_state(callback.state_dict(), type(callback).__name__)

    def on_save_checkpoint(self, trainer: Trainer, stage: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Checks the states that are about to be saved."""
        for key, state in checkpoint["callbacks"].items():
            check_state(state, key)

    def on_train_batch_start(self, trainer: Trainer, stage: StageInterface, *_: Any) -> None:
        """Checks what the callbacks did since the last batch."""
        self._check(trainer, stage)
        wanted = {"accumulate": trainer.accumulate_grad_batches, "max_steps": trainer.max_steps}
        for key, value in wanted.items():
            if value != getattr(self._config, key):
                raise ConfigError(
                    f"trainer.callbacks: {self._names} changed trainer.{key} to {value} at step {trainer.global_step}; "
                    "set it in the experiment, so that a resume and a comparison know of it"
                )

    def on_after_backward(self, trainer: Trainer, stage: StageInterface) -> None:
        """Checks what the callbacks did at the start of this batch."""
        self._check(trainer, stage)

    def on_train_batch_end(self, trainer: Trainer, stage: StageInterface, *_: Any) -> None:
        """Remembers the weights after the step of the optimiser."""
        self._remember(stage)

    def on_fit_end(self, trainer: Trainer, stage: StageInterface) -> None:
        """Checks what the callbacks did after the last step."""
        self._check(trainer, stage)

    def _remember(self, stage: StageInterface) -> None:
        self._seen = None if self._config.sharded else _fingerprints(stage)

    def _check(self, trainer: Trainer, stage: StageInterface) -> None:
        if self._seen is not None and self._seen != _fingerprints(stage):
            raise ConfigError(
                f"trainer.callbacks: {self._names} changed weights, or which of them learn, outside of the optimiser's "
                f"step at step {trainer.global_step}; the kit would save them as trained, and a resume would differ"
            )


def _fingerprints(stage: StageInterface) -> list[tuple[int, int, bool]]:
    """Returns memory address, number of changes in place and `requires_grad` of each parameter; waits for no device."""
    return [(one.data_ptr(), one._version, one.requires_grad) for one in stage.parameters()]


def check_state(state: Any, callback: str) -> None:
    """Raises ConfigError where the state of a callback has a value that a checkpoint cannot hold.

    A resume reads numbers, texts, tensors, and lists and mappings of them; other objects would run code when read.
    """
    if type(state) in STATE:
        return
    if type(state) is dict:
        for key, value in state.items():
            check_state(key, callback)
            check_state(value, callback)
    elif type(state) in (list, tuple):
        for value in state:
            check_state(value, callback)
    else:
        raise ConfigError(
            f"trainer.callbacks: the state of {callback} has a {type(state).__module__}.{type(state).__qualname__}, "
            "and a checkpoint holds numbers, texts, tensors, and lists and mappings of them"
        )
