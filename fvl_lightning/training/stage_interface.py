"""The part of a stage that callbacks and profiling use."""

from abc import abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from lightning import LightningModule
from torch import Tensor

from fvl_lightning.modeling.attention.choice import AttentionChoice
from fvl_lightning.modeling.loss import TokenLoss


class StageInterface(LightningModule):
    """A module that computes the loss of a batch and measures its steps."""

    samples: Tensor | int = 0
    """The number of samples of all optimiser steps so far, over all ranks."""
    last_validation_loss: float | None = None
    """The loss of the last validation pass, equal on all ranks."""
    last_evaluation: Mapping[str, float] = MappingProxyType({})
    """The scores of the last evaluation on tasks by their logged names, equal on all ranks."""
    run_hash: str | None = None
    """The hash of the configuration that the run started with, which its checkpoints name; None without a run."""
    attention = AttentionChoice("sdpa", "there is no language model")
    """The attention of the language model, and why."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the values by which the best weights can be kept."""
        checkpoint["validation_loss"] = self.last_validation_loss
        checkpoint["evaluation"] = dict(self.last_evaluation)

    @abstractmethod
    def compute(self, batch: Any) -> tuple[TokenLoss, dict[str, Tensor]]:
        """Returns the loss of a batch, and the diagnostics of the fusion by name."""

    @property
    @abstractmethod
    def window_tokens(self) -> int:
        """The number of tokens, padding included, that this rank processed since the last `read_log`."""

    @abstractmethod
    def read_log(self) -> dict[str, float]:
        """Returns the metrics of the steps since the last call, over all ranks; all ranks must call it."""
