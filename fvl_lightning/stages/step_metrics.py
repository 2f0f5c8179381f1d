"""Metrics of the optimiser steps: sums that stay on the device until they are read, so that no step waits for them."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from fvl_lightning.core.types import IGNORE_INDEX, Batch, PromptedBatch
from fvl_lightning.modeling.loss import TokenLoss


class StepMetrics:
    """Metrics of the steps since the last logged point, which form a window.

    Args:
        pad_token_id: the id of the padding token.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id
        self.gradient_norm: Tensor | float = 0.0
        self.step_keys: list[tuple[str, ...]] = []
        """The keys of the samples of the last step, by batch."""
        self.datasets = DatasetMetrics()
        self._loss: Any
        self._tokens: Any
        self._correct: Any
        self._padding: Any
        self._diagnostics: dict[str, Tensor]
        self._reset()

    def add(self, loss: TokenLoss, diagnostics: dict[str, Tensor], batch: Batch | PromptedBatch) -> None:
        """Adds one batch."""
        # Sums are replaced rather than changed in place, so that those at the end of the last step survive.
        self._loss = self._loss + loss.sum.detach()
        self._tokens = self._tokens + loss.tokens
        self._correct = self._correct + loss.correct
        self._padding += count_padding(batch, self.pad_token_id)
        self.row_tokens += batch.token_ids.numel() if isinstance(batch, Batch) else batch.targets.numel()
        self.datasets.add(loss, batch)
        self._diagnostics = diagnostics or self._diagnostics  # a batch without images has none

    def end_step(self, updated: bool) -> None:
        """Ends a step; the losses of a skipped step are left out of the window, since they may not be finite."""
        if updated:
            self._at_last_update = self._sums()
        else:
            vars(self).update(self._at_last_update, datasets=copy(self._at_last_update["datasets"]))

    def read(
        self,
        combine: Callable[[Tensor], Tensor] = lambda values: values,
        gather_keys: Callable[[list[tuple[str, ...]]], list[str]] = lambda batches: list(chain(*batches)),
    ) -> dict[str, float]:
        """Returns the means of the window, and starts a new one.

        A mixture adds the mean loss and the supervised tokens of each dataset. Without a supervised token there is no
        loss. `data/step_keys` is the `hash_keys` of the samples of the last step: equal in two runs that trained on the
        same samples. Diagnostics are those of this rank.

        Args:
            combine: sums values over the ranks.
            gather_keys: returns the keys of all ranks in order, given those of this rank.
        """
        sums = [float(value) for value in (self._loss, self._tokens, self._correct, self._padding, self.row_tokens)]
        loss, tokens, correct, padding, row_tokens = combine(torch.tensor(sums, dtype=torch.float64)).tolist()
        losses, counts = self.datasets.read(combine)
        values = {
            "train/loss": loss / max(tokens, 1.0),
            "train/token_accuracy": correct / max(tokens, 1.0),
            "train/gradient_norm": float(self.gradient_norm),
            "data/step_keys": hash_keys(gather_keys(self.step_keys)),
            "train/fill": 1 - padding / max(row_tokens, 1),
            **{f"train/loss/{name}": value for name, value in losses.items()},
            **{f"train/tokens/{name}": value for name, value in counts.items()},
            **{name: float(value) for name, value in self._diagnostics.items() if value.ndim == 0},
        }
        self._reset()
        if not tokens:
            del values["train/loss"], values["train/token_accuracy"], values["train/gradient_norm"]
        return values

    def state(self) -> dict[str, Any]:
        """Returns the sums of the window under way as numbers, for a checkpoint at the end of a step."""
        return {
            "loss": float(self._loss),
            "tokens": int(self._tokens),
            "correct": int(self._correct),
            "padding": int(self._padding),
            "row_tokens": int(self.row_tokens),
            "gradient_norm": float(self.gradient_norm),
            "diagnostics": {name: float(value) for name, value in self._diagnostics.items() if value.ndim == 0},
            "datasets": self.datasets.state(),
        }

    def restore(self, states: Sequence[Mapping[str, Any]], rank: int, ranks: int) -> None:
        """Continues a window, so that a resumed run logs what an uninterrupted one logs.

        Args:
            states: the states of all ranks; those of another number of ranks are not used.
            rank: this rank.
            ranks: the number of ranks.
        """
        if len(states) != ranks:
            return
        state = states[rank]
        self._loss, self._tokens, self._correct = state["loss"], state["tokens"], state["correct"]
        self._padding, self.row_tokens = state["padding"], state["row_tokens"]
        self.gradient_norm = state["gradient_norm"]
        self._diagnostics = {name: torch.tensor(value) for name, value in state["diagnostics"].items()}
        self.datasets.restore(state["datasets"])
        self._at_last_update = self._sums()

    def _reset(self) -> None:
        self._loss, self._tokens, self._correct, self._padding = 0.0, 0, 0, 0
        self.row_tokens = 0
        """The number of tokens of the rows in the window, padding included."""
        self._diagnostics = {}
        self._at_last_update = self._sums()

    def _sums(self) -> dict[str, Any]:
        names = ("_loss", "_tokens", "_correct", "_diagnostics")
        return {name: vars(self)[name] for name in names} | {"datasets": copy(self.datasets)}


class WeightedMean(Metric):
    """A weighted mean over batches and ranks, which is NaN if a value is.

    torchmetrics' MeanMetric leaves out NaN values, so that the rest looks like a result. With nan_strategy="disable"
    (torchmetrics 1.9) it ignores the weights.
    """

    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, value: Tensor, weight: Tensor) -> None:
        """Adds a scalar value with its weight."""
        self.total += value * weight.to(self.total.dtype)
        self.weight += weight

    def compute(self) -> Tensor:
        """Returns the mean, a scalar; NaN if the total weight is 0."""
        return self.total / self.weight


class DatasetMetrics:
    """Losses and supervised tokens of each dataset of a mixture; empty if batches name no datasets."""

    def __init__(self) -> None:
        self._names: tuple[str, ...]
        self._sums: Any
        self._tokens: Any
        self._reset()

    def add(self, loss: TokenLoss, batch: Batch | PromptedBatch) -> None:
        """Adds one batch; all batches of a window come from the same mixture."""
        if loss.dataset_sums is None or not isinstance(batch, Batch):
            return
        assert self._names in ((), batch.datasets), f"batches of {self._names} and of {batch.datasets} in one window"
        self._names = batch.datasets
        if not isinstance(self._sums, Tensor):
            self._sums = torch.as_tensor(self._sums, device=loss.dataset_sums.device)
            self._tokens = torch.as_tensor(self._tokens, device=loss.dataset_sums.device)
        self._sums = self._sums + loss.dataset_sums
        self._tokens = self._tokens + loss.dataset_tokens

    def read(
        self, combine: Callable[[Tensor], Tensor] = lambda values: values
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Returns {dataset: mean loss}, if it had tokens, and {dataset: tokens}, and starts a new window.

        Args:
            combine: sums values over the ranks.
        """
        if not self._names:
            return {}, {}
        sums, tokens = combine(self._sums).tolist(), combine(self._tokens).tolist()
        counts = dict(zip(self._names, tokens, strict=True))
        losses = {name: total / count for (name, count), total in zip(counts.items(), sums, strict=True) if count > 0}
        self._reset()
        return losses, counts

    def state(self) -> dict[str, Any]:
        """Returns the names and sums as texts and numbers."""
        if not self._names:
            return {"names": [], "sums": [], "tokens": []}
        sums, tokens = list(map(float, self._sums)), list(map(int, self._tokens))
        return {"names": list(self._names), "sums": sums, "tokens": tokens}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from a state."""
        self._reset()
        if state["names"]:
            self._names, self._sums, self._tokens = tuple(state["names"]), state["sums"], state["tokens"]

    def _reset(self) -> None:
        self._names, self._sums, self._tokens = (), 0.0, 0


def hash_keys(keys: Sequence[str]) -> float:
    """Returns a hash of the keys in this order: a whole number below 2**52, which a float holds exactly."""
    return float(int(hashlib.sha256("\0".join(keys).encode()).hexdigest()[:13], 16))


def count_padding(batch: Batch | PromptedBatch, pad_token_id: int) -> Tensor:
    """Returns the number of padding tokens at the ends of a batch's rows, a scalar.

    Elsewhere in a row the id of the padding token may be that of the token that ends a turn.
    """
    if isinstance(batch, PromptedBatch):
        return (batch.targets == IGNORE_INDEX).sum()
    is_pad = (batch.token_ids == pad_token_id) & (batch.labels == IGNORE_INDEX)
    return is_pad.flip(-1).cumprod(-1).sum()
