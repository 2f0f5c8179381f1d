"""The interface through which callbacks read what a training has measured."""

from abc import abstractmethod

from lightning import LightningModule
from torch import Tensor


class LoggedModule(LightningModule):
    """A module that measures its steps; the callbacks of this package need no more of it."""

    samples: Tensor | int = 0
    """The number of samples of all optimiser steps so far, over all ranks."""
    last_validation_loss: float | None = None
    """The loss of the last validation pass, equal on all ranks."""

    @property
    @abstractmethod
    def window_tokens(self) -> int:
        """The number of tokens, padding included, that this rank processed since the last `read_log`."""

    @abstractmethod
    def read_log(self) -> dict[str, float]:
        """Returns the metrics of the steps since the last call, over all ranks; all ranks must call it."""
