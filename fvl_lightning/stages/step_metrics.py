"""What is logged of the steps: sums, kept on the device until they are read, so that no step waits for them."""

import hashlib
from collections.abc import Callable, Sequence
from copy import copy
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from fvl_lightning.core.types import IGNORE_INDEX, Batch, PromptedBatch
from fvl_lightning.modeling.loss import TokenLoss


class StepMetrics:
    """Sums over the steps since the last logged point."""

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id
        self.gradient_norm: Tensor | float = 0.0
        self.step_keys: list[tuple[str, ...]] = []
        """The samples of the last step, batch by batch."""
        self.datasets = DatasetMetrics()
        self._loss: Any
        self._tokens: Any
        self._correct: Any
        self._pads: Any
        self._diagnostics: dict[str, Tensor]
        self._reset()

    def add(self, loss: TokenLoss, diagnostics: dict[str, Tensor], batch: Batch | PromptedBatch) -> None:
        """Adds one batch."""
        # Sums are replaced rather than added to, so that those of the last step's end are still there.
        self._loss = self._loss + loss.sum.detach()
        self._tokens = self._tokens + loss.tokens
        self._correct = self._correct + loss.correct
        self._pads += pads(batch, self.pad_token_id)
        self.row_tokens += batch.token_ids.numel() if isinstance(batch, Batch) else batch.targets.numel()
        self.datasets.add(loss, batch)
        self._diagnostics = diagnostics or self._diagnostics  # a batch without images has none

    def end_step(self, updated: bool) -> None:
        """Ends a step; the losses of one that made no update, since they are not finite, are left out of the window."""
        if updated:
            self._kept = self._sums()
        else:
            vars(self).update(self._kept, datasets=copy(self._kept["datasets"]))

    def read(
        self,
        combine: Callable[[Tensor], Tensor] = lambda values: values,
        keys_of: Callable[[list[tuple[str, ...]]], list[str]] = lambda batches: list(chain(*batches)),
    ) -> dict[str, float]:
        """The window's means, and a new window.

        For a mixture also the mean loss and the supervised tokens, both of this window, per data set. There is no loss
        where there was no token. `data/step_keys` is the `digest` of the samples of the last step: equal in two runs
        that trained on the same ones. Diagnostics are this rank's.

        Args:
            combine: sums over the ranks.
            keys_of: the keys of all ranks in order.
        """
        sums = [float(value) for value in (self._loss, self._tokens, self._correct, self._pads, self.row_tokens)]
        loss, tokens, correct, pads_, row_tokens = combine(torch.tensor(sums, dtype=torch.float64)).tolist()
        losses, counts = self.datasets.read(combine)
        values = {
            "train/loss": loss / max(tokens, 1.0),
            "train/token_accuracy": correct / max(tokens, 1.0),
            "train/gradient_norm": float(self.gradient_norm),
            "data/step_keys": digest(keys_of(self.step_keys)),
            "train/fill": 1 - pads_ / max(row_tokens, 1),
            **{f"train/loss/{name}": value for name, value in losses.items()},
            **{f"train/tokens/{name}": value for name, value in counts.items()},
            **{name: float(value) for name, value in self._diagnostics.items() if value.ndim == 0},
        }
        self._reset()
        if not tokens:
            del values["train/loss"], values["train/token_accuracy"], values["train/gradient_norm"]
        return values

    def _reset(self) -> None:
        self._loss, self._tokens, self._correct, self._pads = 0.0, 0, 0, 0
        self.row_tokens = 0
        """Tokens of the rows since the last point, pads included: what the machine worked on."""
        self._diagnostics = {}
        self._kept = self._sums()

    def _sums(self) -> dict[str, Any]:
        names = ("_loss", "_tokens", "_correct", "_diagnostics")
        return {name: vars(self)[name] for name in names} | {"datasets": copy(self.datasets)}


class WeightedMean(Metric):
    """A weighted mean over batches and ranks, which is NaN where a value is.

    torchmetrics' MeanMetric leaves out what is NaN, so that the rest looks like a result; told not to
    (nan_strategy="disable", torchmetrics 1.9), it forgets the weights.
    """

    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, value: Tensor, weight: Tensor) -> None:
        """Adds a scalar with its weight."""
        self.total += value * weight.to(self.total.dtype)
        self.weight += weight

    def compute(self) -> Tensor:
        """The mean, a scalar; NaN where nothing has a weight."""
        return self.total / self.weight


class DatasetMetrics:
    """Sums of losses and supervised tokens per data set of a mixture; empty while batches name none."""

    def __init__(self) -> None:
        self._names: tuple[str, ...]
        self._sums: Any
        self._tokens: Any
        self._reset()

    def add(self, loss: TokenLoss, batch: Batch | PromptedBatch) -> None:
        """Adds one batch; those of one window are of one mixture."""
        if loss.dataset_sums is None or not isinstance(batch, Batch):
            return
        assert self._names in ((), batch.datasets), f"batches of {self._names} and of {batch.datasets} in one window"
        self._names = batch.datasets
        self._sums = self._sums + loss.dataset_sums
        self._tokens = self._tokens + loss.dataset_tokens

    def read(
        self, combine: Callable[[Tensor], Tensor] = lambda values: values
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Mean loss of the data sets that had a token, and tokens of all, by name; then starts anew.

        Args:
            combine: sums over the ranks, for numbers that are to be of all of them.
        """
        if not self._names:
            return {}, {}
        sums, tokens = combine(self._sums).tolist(), combine(self._tokens).tolist()
        counts = dict(zip(self._names, tokens, strict=True))
        losses = {
            name: total / count for (name, count), total in zip(counts.items(), sums, strict=True) if count > 0
        }
        self._reset()
        return losses, counts

    def _reset(self) -> None:
        self._names, self._sums, self._tokens = (), 0.0, 0


def digest(keys: Sequence[str]) -> float:
    """A whole number below 2**52, which a metric holds exactly, that names these keys in this order."""
    return float(int(hashlib.sha256("\0".join(keys).encode()).hexdigest()[:13], 16))


def pads(batch: Batch | PromptedBatch, pad_token_id: int) -> Tensor:
    """How many pads end a batch's rows, a scalar; elsewhere a pad's id may be that of the token that ends a turn."""
    if isinstance(batch, PromptedBatch):
        return (batch.targets == IGNORE_INDEX).sum()
    is_pad = (batch.token_ids == pad_token_id) & (batch.labels == IGNORE_INDEX)
    return is_pad.flip(-1).cumprod(-1).sum()
